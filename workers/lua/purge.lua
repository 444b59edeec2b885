#!lua flags=allow-oom
-- Removes dead letters on an operator's request: one, or the oldest of those that are old enough.
-- include: base entries capped replies batches letters audit
-- keys: task:{id} hash rw | tasks:dead zset rw | message:{id} hash rw | messages:dead zset rw | dead:in stream rw
-- keys: log:control stream w | in:control:{kind} stream w
-- ARGV[3]  tasks, messages or entries
-- ARGV[4]  the kind of worker that received the request
-- LIMITS.removals  maximum number of removals for one request
-- ARGV[5]  number of requests, then for each:
--   entry | caller or '' | dead_id: of one dead letter, or '' | age_ms: minimum age of those to remove, or ''
-- Returns {words}. Words: OK; NOT_FOUND; NOT_DEAD; GONE (the entry was handled before); ERROR <why> (not consumed).
--   An answer of ok has {"purged":n,"left":n}: how many were removed, and how many of that age are left
-- Events in log:control: dead.purged
local STREAM = 'in:control:' .. ARGV[4]
local KIND, MOST = ARGV[3], tonumber(LIMITS.removals)

local function remove_task(id)
  if redis.pcall('HGET', P .. 'task:' .. id, 'state') == 'failed' then
    call('UNLINK', P .. 'task:' .. id)
  end
end

local RECORDS = {
  tasks = { index = 'tasks:dead', head = 'task', state = 'state', dead = 'failed', remove = remove_task },
  messages = { index = 'messages:dead', head = 'message', state = 'status', dead = 'dead', remove = remove_letter },
}

-- Removes one record; returns 1 and 0, or a word, a code and a message.
local function purge_record(of, id)
  local key = P .. of.head .. ':' .. id
  local state = call('HGET', key, of.state)
  if not state or state == 'refused' then
    call('ZREM', P .. of.index, id) -- its record was removed
    return 'NOT_FOUND', of.head .. '_not_found', (of.head == 'task' and 'Task ' or 'Message ') .. "'" .. id .. "' not found"
  elseif state ~= of.dead then
    return 'NOT_DEAD', of.head .. '_not_dead', of.head .. " '" .. id .. "' is " .. state .. ', not a dead letter'
  end
  call('ZREM', P .. of.index, id)
  of.remove(id)
  return 1, 0
end

-- Removes the oldest records of an index; returns how many, and how many of that age are left.
local function purge_records(of, until_ms)
  local index = P .. of.index
  local ids = call('ZRANGEBYSCORE', index, '-inf', until_ms, 'LIMIT', 0, MOST)
  for _, id in ipairs(ids) do
    call('ZREM', index, id)
    of.remove(id)
  end
  return #ids, call('ZCOUNT', index, '-inf', until_ms)
end

-- The same for entries of dead:in.
local function purge_entry(id)
  if call('XDEL', P .. 'dead:in', id) == 0 then
    return 'NOT_FOUND', 'entry_not_found', "entry '" .. id .. "' is not in dead:in"
  end
  return 1, 0
end

local function purge_entries(until_ms)
  local ids = {}
  for _, found in ipairs(call('XRANGE', P .. 'dead:in', '-', until_ms, 'COUNT', MOST)) do
    ids[#ids + 1] = found[1]
  end
  if #ids > 0 then
    call('XDEL', P .. 'dead:in', unpack(ids))
  end
  return #ids, #call('XRANGE', P .. 'dead:in', '-', until_ms, 'COUNT', 1)
end

local function purge(i)
  local entry, caller, id, age = unpack(ARGV, i, i + 3)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local of = RECORDS[KIND]
  local until_ms = age ~= '' and int(entry_ms(entry) - tonumber(age))
  local purged, left, message
  if of then
    if until_ms then
      purged, left = purge_records(of, until_ms)
    else
      purged, left, message = purge_record(of, id)
    end
  elseif until_ms then
    purged, left = purge_entries(until_ms)
  else
    purged, left, message = purge_entry(id)
  end
  if message then
    answer(caller, STREAM, entry, left, message)
    return purged
  end
  log('log:control', 'type', 'dead.purged', 'of', KIND, 'id', id, 'purged', int(purged), 'caller', caller)
  answer_with(caller, STREAM, entry, '{"purged":' .. int(purged) .. ',"left":' .. int(left) .. '}')
  return 'OK'
end

return run_batch({ group = ARGV[4], stream = STREAM, at = 5, width = 4, handle = purge, audit = audit })
