#!lua flags=allow-oom
-- Admits a batch of submitted tasks: records each and puts it where it waits. The same id twice has one effect.
-- include: base records tasklog tasks attempts
-- moves: none>queued none>scheduled none>refused none>cancelled
-- moves: refused>queued refused>scheduled refused>refused refused>cancelled
-- ARGV[10] backlog limit, tasks
-- ARGV[11] backlog limit, bytes
-- ARGV[12] 1: the server is nearly full, refuse everything
-- ARGV[13] ms that a refused record is kept
-- ARGV[14] number of pools named below, then for each: pool | definition (opaque JSON)
-- then the number of tasks, then for each:
--   entry id | priority | share of the backlog at which it is refused | task id | digest | pool | score | run at, ms, or ''
--   | caller of the fact or '' | 1: tell it the outcome | body (opaque JSON) | number n of options | n times name | value
-- Returns {words, loads, pools, pools_rev, raised}. Words: QUEUED, SCHEDULED, CANCELLED (a cancel came first), REFUSED (no room),
--   DUPLICATE (the same content was admitted before), CONFLICT (other content under this id), ERROR <why> (not consumed)
-- Events in log:tasks: task.queued, task.scheduled, task.refused, task.cancelled
local PRIORITIES = { 'urgent', 'critical', 'high', 'normal', 'low' }
local MAX_TASKS, MAX_BYTES, FULL, REFUSED_TTL = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12] == '1', ARGV[13]
local HAS_TOMBSTONES = call('ZCARD', P .. 'tombstones') > 0
local definitions = {}
local at = 15
for _ = 1, tonumber(ARGV[14]) do
  definitions[ARGV[at]] = ARGV[at + 1]
  at = at + 2
end

-- What waits now, in tasks and in bytes.
local waiting, bytes = 0, 0
do
  local names = { 'backlog_bytes' }
  for _, priority in ipairs(PRIORITIES) do
    names[#names + 1] = 'queued:' .. priority
    names[#names + 1] = 'scheduled:' .. priority
  end
  local values = call('HMGET', P .. 'counters', unpack(names))
  bytes = tonumber(values[1] or 0)
  for i = 2, #names do
    waiting = waiting + tonumber(values[i] or 0)
  end
end

-- The outcome again, for a caller that submits what has ended already.
local function repeat_outcome(caller, id, state)
  local values = call('HMGET', P .. 'task:' .. id, 'result', 'error')
  reply(caller, 'type', 'task.' .. state, 'task_id', id, 'data', values[1] or values[2] or 'null')
end

-- A task that was refused before begins anew.
local function forget_refusal(state, id)
  if state then
    call('DEL', P .. 'task:' .. id)
    call('ZREM', P .. 'tasks:refused', id)
  end
end

local ENDED = { completed = true, failed = true, cancelled = true, expired = true }
local EVENT, WORD = { queued = 'task.queued', scheduled = 'task.scheduled' }, { queued = 'QUEUED', scheduled = 'SCHEDULED' }

-- Where each task begins, and its record. Most batches are all of new tasks: that is asked once, not for each.
local starts, keys, are_known = {}, {}, false
do
  local i = at + 1
  for n = 1, tonumber(ARGV[at]) do
    starts[n], keys[n] = i, P .. 'task:' .. ARGV[i + 3]
    i = i + 12 + tonumber(ARGV[i + 11]) * 2
  end
  for i = 1, #keys, 1000 do
    are_known = are_known or call('EXISTS', unpack(keys, i, math.min(i + 999, #keys))) > 0
  end
end
local written_here = {}

local function admit(n)
  local i, key = starts[n], keys[n]
  local entry, priority, share, id, digest, pool, score, run_at, caller, notify, body, options = unpack(ARGV, i, i + 11)
  options = tonumber(options)
  local known = (are_known or written_here[key]) and call('HGET', key, 'state')
  written_here[key] = true
  if known and known ~= 'refused' then
    if load_rest(load_task(id)).digest ~= digest then
      answer(caller, entry, 'id_conflict', "task_id '" .. id .. "' was submitted before with other content")
      return 'CONFLICT'
    end
    answer(caller, entry)
    if notify == '1' and caller ~= '' and ENDED[known] then
      repeat_outcome(caller, id, known)
    end
    return 'DUPLICATE'
  end
  if known and call('HGET', key, 'entry') == entry then
    answer(caller, entry, 'backlog_full', 'the task was refused; submit it again later')
    return 'REFUSED'
  end
  local submitted_at = string.sub(entry, 1, string.find(entry, '-', 1, true) - 1)
  local task = { id = id, key = key, priority = priority, pool = pool, submitted_at = submitted_at, score = score,
    digest = digest, more = options > 0 and '1' or '0', caller = notify == '1' and caller ~= '' and caller or nil }
  local room = tonumber(share)
  if FULL or waiting + 1 > MAX_TASKS * room or bytes + #body > MAX_BYTES * room then
    local why = FULL and 'the server is nearly full' or 'the backlog is full'
    call('DEL', key)
    call('HSET', key, 'state', 'refused', 'submission', pack_submission(task), 'entry', entry,
      'error', error_json('backlog_full', why))
    call('PEXPIRE', key, REFUSED_TTL)
    call('ZADD', P .. 'tasks:refused', NOW, id)
    bump('refused:' .. priority, 1)
    log_task('task.refused', id, 'message', why)
    answer(caller, entry, 'backlog_full', why .. '; submit the task again later')
    return 'REFUSED'
  end
  local fields = { 'submission', pack_submission(task), 'body', body }
  for j = i + 12, i + 11 + options * 2, 2 do
    task[ARGV[j]] = ARGV[j + 1]
    fields[#fields + 1] = ARGV[j]
    fields[#fields + 1] = ARGV[j + 1]
  end
  local state = 'queued'
  local cancelled_at = HAS_TOMBSTONES and tonumber(call('ZSCORE', P .. 'tombstones', id) or nil)
  -- A cancel takes what was submitted before it, not what someone submits afresh while it waits.
  if cancelled_at and tonumber(submitted_at) <= cancelled_at then
    state = 'cancelled'
  elseif run_at ~= '' and tonumber(run_at) > now then
    state, task.run_at = 'scheduled', run_at
    fields[#fields + 1] = 'run_at'
    fields[#fields + 1] = run_at
  end
  if state == 'cancelled' then
    forget_refusal(known, id)
    call('HSET', key, 'state', 'queued', unpack(fields))
    bump('submitted:' .. priority, 1)
    bump('queued:' .. priority, 1)
    call('ZREM', P .. 'tombstones', id)
    task.state = 'queued'
    cancelled(task, 'cancelled before it was admitted')
    answer(caller, entry)
    return 'CANCELLED'
  end
  task.state = state
  if state == 'queued' then
    touch_pool(pool, definitions[pool])
  end
  if task.deadline or state == 'scheduled' then
    set_alarm(task)
  end
  forget_refusal(known, id)
  call('HSET', key, 'state', state, unpack(fields))
  if state == 'queued' then
    enqueue(id, pool, score)
  end
  waiting, bytes = waiting + 1, bytes + #body
  move(priority, 'submitted', state)
  bump('backlog_bytes', #body)
  log_each(EVENT[state], id, 'priority', priority)
  answer(caller, entry)
  return WORD[state]
end

local done = {}
local words = guard_each(#starts, function(n)
  local word = admit(n)
  local entry, priority = ARGV[starts[n]], ARGV[starts[n] + 1]
  local ids = done[priority]
  if not ids then
    ids = {}
    done[priority] = ids
  end
  ids[#ids + 1] = entry
  return word
end)
local told = finish_tasks(words)
for priority, ids in pairs(done) do
  consume('in:tasks:' .. priority, 'distributor', ids)
end
return told
