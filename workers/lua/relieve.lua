#!lua flags=allow-oom
-- Frees memory when the server is nearly full: the oldest ended tasks lose result, payload and progress. Failed tasks
-- keep them, because they may be replayed. No record of a task is removed. If the server is so full that submissions are
-- refused, the oldest dead letters of messages are removed: those of a flood would fill it for as long as they are kept.
-- include: base capped batches letters
-- keys: tasks:terminal zset r | tasks:relieved string rw | task:{id} hash rw | log:progress stream w
-- keys: log:control stream w | messages:dead zset rw
-- LIMITS.relieve_above  share of maxmemory above which memory is freed
-- LIMITS.relieve_down_to  share of maxmemory down to which it is freed
-- LIMITS.letters_above  share of maxmemory above which dead letters of messages are removed
-- LIMITS.letters_down_to  share of maxmemory down to which they are removed
-- LIMITS.records  maximum number of records checked in this call
-- LIMITS.bytes  bytes freed in this call, about: what the server has to copy and free
-- LIMITS.used  memory used, in bytes; absent: as the server reports
-- LIMITS.maximum  maxmemory, in bytes; absent: as the server reports
-- Returns {used, maximum, records, bytes, letters, more}: the memory before (maximum 0: no limit, or INFO is forbidden);
--   how many tasks lost something, and bytes in all; how many dead letters were removed; 1: call again, there is more to free
-- Events in log:control: memory.relieved
local ABOVE, DOWN_TO = tonumber(LIMITS.relieve_above), tonumber(LIMITS.relieve_down_to)
local MOST, MOST_BYTES = tonumber(LIMITS.records), tonumber(LIMITS.bytes)

-- Returns the memory used and the maximum, as the server counts when it refuses commands: without the buffers for its
-- replicas and its append-only file.
local function read_memory()
  if LIMITS.used then
    return tonumber(LIMITS.used), tonumber(LIMITS.maximum)
  end
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then
    return 0, 0
  end
  local used, maximum = string.match(info, 'used_memory:(%d+)'), string.match(info, 'maxmemory:(%d+)')
  local uncounted = string.match(info, 'mem_not_counted_for_evict:(%d+)')
  return tonumber(used or 0) - tonumber(uncounted or 0), tonumber(maximum or 0)
end

-- Trims the log of progress, which matters least, to its newest section.
local function trim_progress_log()
  local stream = load_size('log:progress', LIMITS.progress_log_bytes)
  local newest = stream.begins[#stream.begins]
  if newest then
    redis.pcall('XTRIM', stream.key, 'MINID', newest)
    stream.begins = {}
  else
    capped['log:progress'] = nil
  end
end

-- Returns the rank of the first ended task that was not checked before. Tasks that ended in the same ms are ordered by
-- id. Tasks that end in this ms wait for the next call, so that none is added behind the cursor. A cursor that is ahead
-- of the clock was set before the clock was set back, or before a fail-over: the walk starts again.
local function first_rank()
  local at, id = string.match(call('GET', P .. 'tasks:relieved') or '', '^(%d+) (.+)$')
  if not at or tonumber(at) > now then
    return 0
  end
  if tonumber(call('ZSCORE', P .. 'tasks:terminal', id) or nil) == tonumber(at) then
    return call('ZRANK', P .. 'tasks:terminal', id) + 1
  end
  return call('ZCOUNT', P .. 'tasks:terminal', '-inf', '(' .. at)
end

-- Returns what stays of a body: the type, for readers of the record. It follows the id, where the SDK puts it.
local function reduced(body)
  local task_type = string.match(body, '^{"task_id":"[^"\\]*","task_type":"([^"\\]*)"')
  return task_type and '{"task_type":"' .. task_type .. '"}' or '{}'
end

-- Removes result, payload and progress from a record; returns the bytes that this frees, 0 if there is nothing to
-- remove.
local ENDED = { completed = true, cancelled = true, expired = true }
local function drop(id)
  local key = P .. 'task:' .. id
  local values = call('HMGET', key, 'state', 'dropped', 'body')
  if not ENDED[values[1]] or values[2] then
    return 0
  end
  local body = values[3] or ''
  local kept = reduced(body)
  local bytes = #body - #kept + call('HSTRLEN', key, 'result') + call('HSTRLEN', key, 'progress')
  if bytes <= 0 then
    return 0
  end
  call('HDEL', key, 'result', 'progress', 'progress_at')
  call('HSET', key, 'body', kept, 'dropped', '1')
  return bytes
end

local records, freed, is_more = 0, 0, false
local function relieve(wanted)
  local rank = first_rank()
  local last = math.min(rank + MOST, call('ZCOUNT', P .. 'tasks:terminal', '-inf', '(' .. NOW)) - 1
  if last < rank then
    return
  end
  local found = call('ZRANGE', P .. 'tasks:terminal', rank, last, 'WITHSCORES')
  local id, at
  is_more = #found == 2 * MOST
  for i = 1, #found, 2 do
    if freed >= wanted or freed >= MOST_BYTES then
      is_more = freed < wanted
      break
    end
    id, at = found[i], found[i + 1]
    local bytes, failed = guarded(drop, id)
    if not failed and bytes > 0 then
      records, freed = records + 1, freed + bytes
    end
  end
  if id then
    call('SET', P .. 'tasks:relieved', int(tonumber(at)) .. ' ' .. id)
  end
end

-- Removes the oldest dead letters of messages.
local letters, letters_bytes = 0, 0
local function remove_dead_letters(wanted)
  local ids = call('ZRANGE', P .. 'messages:dead', 0, MOST - 1)
  is_more = #ids == MOST
  for _, id in ipairs(ids) do
    if freed + letters_bytes >= wanted or freed + letters_bytes >= MOST_BYTES then
      is_more = freed + letters_bytes < wanted
      return
    end
    call('ZREM', P .. 'messages:dead', id)
    letters, letters_bytes = letters + 1, letters_bytes + remove_letter(id)
  end
end

local used, maximum = read_memory()
if maximum > 0 and used > ABOVE * maximum then
  trim_progress_log()
  relieve(used - DOWN_TO * maximum)
  if not is_more and used - freed > tonumber(LIMITS.letters_above) * maximum then
    remove_dead_letters(used - tonumber(LIMITS.letters_down_to) * maximum)
  end
  if records + letters > 0 then
    bump('results_dropped', records)
    bump('results_dropped_bytes', freed)
    bump('dead_letters_dropped', letters)
    log('log:control', 'type', 'memory.relieved', 'records', int(records), 'bytes', int(freed + letters_bytes),
      'dead_letters', int(letters), 'used', int(used), 'maximum', int(maximum))
  end
  finish()
end
return { int(used), int(maximum), int(records), int(freed + letters_bytes), int(letters), is_more and '1' or '0' }
