#!lua flags=allow-oom
-- Forgets dead letters on an operator's request: one, or the oldest of those that died long enough ago.
-- include: base
-- keys: task:{id} hash rw | tasks:dead zset rw | message:{id} hash rw | messages:dead zset rw | dead:in stream rw
-- keys: log:control stream w | in:control:{kind} stream w
-- ARGV[5] tasks, messages or entries
-- ARGV[6] the kind of worker that was told
-- ARGV[7] forgotten at most for one request
-- ARGV[8] number of requests, then for each: entry id | caller or '' | id of the one or '' | ms since it died, or ''
-- Returns {words}. Words: OK; NOT_FOUND; NOT_DEAD; GONE (its entry was handled before); ERROR <why> (not consumed).
--   An answer of ok says {"purged":n,"left":n}:
--   how many were forgotten, and how many more of that age there are
-- Events in log:control: dead.purged
local STREAM = 'in:control:' .. ARGV[6]
local OF, MOST = ARGV[5], tonumber(ARGV[7])
local RECORDS = {
  tasks = { index = 'tasks:dead', head = 'task', state = 'state', dead = 'failed' },
  messages = { index = 'messages:dead', head = 'message', state = 'status', dead = 'dead' },
}

-- Records that an index names.
local function purge_record(of, id)
  local key = P .. of.head .. ':' .. id
  local state = call('HGET', key, of.state)
  if not state or state == 'refused' then
    call('ZREM', P .. of.index, id) -- its record has ended by itself
    return 'NOT_FOUND', of.head .. '_not_found', (of.head == 'task' and 'Task ' or 'Message ') .. "'" .. id .. "' not found"
  elseif state ~= of.dead then
    return 'NOT_DEAD', of.head .. '_not_dead', of.head .. " '" .. id .. "' is " .. state .. ', no dead letter'
  end
  call('ZREM', P .. of.index, id)
  call('UNLINK', key)
  return 1, 0
end

local function purge_records(of, until_ms)
  local index = P .. of.index
  local ids = call('ZRANGEBYSCORE', index, '-inf', until_ms, 'LIMIT', 0, MOST)
  for _, id in ipairs(ids) do
    local key = P .. of.head .. ':' .. id
    local state = redis.pcall('HGET', key, of.state)
    call('ZREM', index, id)
    if state == of.dead then
      call('UNLINK', key)
    end
  end
  return #ids, call('ZCOUNT', index, '-inf', until_ms)
end

-- Entries of dead:in.
local function purge_entry(id)
  if call('XDEL', P .. 'dead:in', id) == 0 then
    return 'NOT_FOUND', 'entry_not_found', "entry '" .. id .. "' is not in dead:in"
  end
  return 1, 0
end

local function purge_entries(until_ms)
  local ids = {}
  for _, one in ipairs(call('XRANGE', P .. 'dead:in', '-', until_ms, 'COUNT', MOST)) do
    ids[#ids + 1] = one[1]
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
  local of = RECORDS[OF]
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
  log('log:control', 'type', 'dead.purged', 'of', OF, 'id', id, 'purged', int(purged), 'caller', caller)
  answer_with(caller, STREAM, entry, '{"purged":' .. int(purged) .. ',"left":' .. int(left) .. '}')
  return 'OK'
end

local words, done = {}, {}
for i = 9, 8 + tonumber(ARGV[8]) * 4, 4 do
  local word, failed = guarded(purge, i)
  words[#words + 1] = word
  if not failed then
    done[#done + 1] = ARGV[i]
  end
end
finish()
consume(STREAM, ARGV[6], done)
return { words }
