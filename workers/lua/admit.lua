#!lua flags=allow-oom
-- Admits a batch of submitted tasks: records each one and puts it where it waits. The same id twice has one effect.
-- include: base entries replies batches records tasklog tasks ends
-- moves: none>queued none>scheduled none>refused none>cancelled none>expired
-- moves: refused>queued refused>scheduled refused>refused refused>cancelled refused>expired
-- keys: task_types hash rw
-- keys: task:{id} hash rw | tombstones zset rw | counters hash r | tasks:refused zset w | in:tasks:{priority} stream w
-- LIMITS.backlog_tasks  backlog limit, tasks
-- LIMITS.backlog_bytes  backlog limit, bytes
-- LIMITS.share_urgent, share_critical, share_high, share_normal, share_low  share of the backlog at which tasks of this
--   priority are refused
-- ARGV[3]  1: the server is nearly full, refuse everything
-- ARGV[4]  number of pools named below, then for each: pool | definition (opaque JSON) | type of its tasks
-- then the number of groups of tasks that share this, then for each:
--   priority | pool | caller of the fact or '' | number of options | name of each
-- then the number of tasks, then for each:
--   index of its group | entry id | task id | score | submission (as in its record) | body (opaque JSON)
--   | value of each option of its group
-- The tasks of one entry follow one another: it is consumed, and its caller answered, when all of them are admitted or
-- refused. Options are fields of the record: ms, counts, or `preferences` (opaque JSON). A task with a later `run_at` is
-- scheduled.
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: QUEUED, SCHEDULED, CANCELLED (a cancel came first),
--   EXPIRED (its deadline has passed), REFUSED (no room), DUPLICATE (the same content was admitted before),
--   CONFLICT (other content under this id), GONE (the entry was handled before), ERROR <why> (not consumed)
-- Events in log:tasks: task.queued, task.scheduled, task.refused, task.cancelled, task.expired
-- Outcomes in replies:{caller}: task.cancelled, if a cancel came first; task.expired; task.completed, task.failed,
--   task.cancelled or task.expired again, if the caller of an ended task submits the same content again
local PRIORITIES = { 'urgent', 'critical', 'high', 'normal', 'low' }
local MAX_TASKS, MAX_BYTES, FULL = tonumber(LIMITS.backlog_tasks), tonumber(LIMITS.backlog_bytes), ARGV[3] == '1'
local HAS_TOMBSTONES = call('ZCARD', P .. 'tombstones') > 0
local SHARE = {}
for _, priority in ipairs(PRIORITIES) do
  SHARE[priority] = tonumber(LIMITS['share_' .. priority])
end
local definitions, types, of_types = {}, {}, {}
local at = 5
for _ = 1, tonumber(ARGV[4]) do
  definitions[ARGV[at]], types[ARGV[at]] = ARGV[at + 1], ARGV[at + 2]
  at = at + 3
end

-- The backlog now, in tasks and in bytes.
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

-- Sends the outcome again to a caller that submits an ended task.
local function repeat_outcome(caller, id, state)
  local values = call('HMGET', P .. 'task:' .. id, 'result', 'error')
  reply_outcome(caller, id, state, values[1] or values[2])
end

-- Removes the record of a refusal before the task is admitted.
local function remove_refusal(state, id)
  if state then
    call('DEL', P .. 'task:' .. id)
    call('ZREM', P .. 'tasks:refused', id)
  end
end

local ENDED = { completed = true, failed = true, cancelled = true, expired = true }
local EVENT, WORD = { queued = 'task.queued', scheduled = 'task.scheduled' }, { queued = 'QUEUED', scheduled = 'SCHEDULED' }

local groups = {}
at = at + 1
for n = 1, tonumber(ARGV[at - 1]) do
  local priority, pool, caller, options = unpack(ARGV, at, at + 3)
  groups[n] = {
    stream = 'in:tasks:' .. priority, priority = priority, pool = pool, caller = caller, admitted = 0,
    names = { unpack(ARGV, at + 4, at + 3 + tonumber(options)) },
  }
  at = at + 4 + tonumber(options)
end

-- The index of each task's first argument, and its record. Most batches have only new tasks: one command checks that
-- for the whole batch.
local starts, group_of, keys, are_known = {}, {}, {}, false
do
  local i = at + 1
  for n = 1, tonumber(ARGV[at]) do
    local group = groups[tonumber(ARGV[i])]
    starts[n], group_of[n], keys[n] = i, group, P .. 'task:' .. ARGV[i + 2]
    i = i + 6 + #group.names
  end
  for first = 1, #keys, 1000 do
    are_known = are_known or call('EXISTS', unpack(keys, first, math.min(first + 999, #keys))) > 0
  end
end
local written_here = {}

-- Returns the optional fields of a task's record, its run time and its deadline.
local function options_of(names, i)
  local fields, run_at, deadline = {}, nil, nil
  for n, name in ipairs(names) do
    local value = ARGV[i + n]
    if name == 'run_at' then
      run_at = tonumber(value) > now and value or nil
    else
      deadline = name == 'deadline' and value or deadline
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  return fields, run_at, deadline
end

-- Writes the totals of types. The number of types is bounded: those beyond it are counted together, under no name.
local MOST_TYPES = 1000
local function write_types()
  local key = P .. 'task_types'
  for _, group in ipairs(groups) do
    if group.admitted > 0 then
      local task_type = types[group.pool]
      of_types[task_type] = (of_types[task_type] or 0) + group.admitted
    end
  end
  for task_type, count in pairs(of_types) do
    if redis.pcall('HINCRBY', key, task_type, count) == count and task_type ~= '' and call('HLEN', key) > MOST_TYPES then
      call('HDEL', key, task_type)
      call('HINCRBY', key, '', count)
    end
  end
end

local NONE = {}
local function admit(n)
  local i, key, group = starts[n], keys[n], group_of[n]
  local entry, id, score, submission, body = unpack(ARGV, i + 1, i + 5)
  local stream, priority, pool, caller = group.stream, group.priority, group.pool, group.caller
  if not is_present(stream, entry) then
    return 'GONE'
  end
  local known = (are_known or written_here[key]) and call('HGET', key, 'state')
  written_here[key] = true
  if known and known ~= 'refused' then
    if digest_of(call('HGET', key, 'submission')) ~= digest_of(submission) then
      answer(caller, stream, entry, 'id_conflict', "task_id '" .. id .. "' was submitted before with other content", 'task_id', id)
      return 'CONFLICT'
    end
    if caller ~= '' and ENDED[known] and caller == caller_of(submission) then
      repeat_outcome(caller, id, known)
    end
    return 'DUPLICATE'
  end
  if known and call('HGET', key, 'entry') == entry then
    answer(caller, stream, entry, 'backlog_full', 'the task was refused; submit it again later', 'task_id', id)
    return 'REFUSED'
  end
  local room = SHARE[priority]
  if FULL or waiting + 1 > MAX_TASKS * room or bytes + #body > MAX_BYTES * room then
    local why = FULL and 'the server is nearly full' or 'the backlog is full'
    call('DEL', key)
    call('HSET', key, 'state', 'refused', 'submission', submission, 'entry', entry, 'error', error_json('backlog_full', why))
    call('ZADD', P .. 'tasks:refused', NOW, id)
    bump('refused:' .. priority, 1)
    log_task('task.refused', id, 'message', why)
    answer(caller, stream, entry, 'backlog_full', why .. '; submit the task again later', 'task_id', id)
    return 'REFUSED'
  end
  local fields, run_at, deadline, has_options = NONE, nil, nil, group.names[1] ~= nil
  if has_options then
    fields, run_at, deadline = options_of(group.names, i + 5)
  end
  local state = run_at and 'scheduled' or 'queued'
  local cancelled_at = HAS_TOMBSTONES and tonumber(call('ZSCORE', P .. 'tombstones', id) or nil)
  -- A cancel applies to tasks that were submitted before it, not to later submissions of the id.
  local is_cancelled = cancelled_at and entry_ms(entry) <= cancelled_at
  local is_over = is_cancelled or (deadline and tonumber(deadline) <= now)
  if is_over or has_options then
    check_due_types()
  end
  if is_over then
    remove_refusal(known, id)
    call('HSET', key, 'state', 'queued', 'submission', submission, 'body', body, unpack(fields))
    bump('submitted:' .. priority, 1)
    bump('queued:' .. priority, 1)
    group.admitted = group.admitted + 1
    if is_cancelled then
      call('ZREM', P .. 'tombstones', id)
      cancelled(load_task(id), 'cancelled before it was admitted')
      return 'CANCELLED'
    end
    expired(load_task(id))
    return 'EXPIRED'
  end
  if state == 'queued' then
    touch_pool(pool, definitions[pool])
  end
  remove_refusal(known, id)
  if state == 'scheduled' then
    fields[#fields + 1] = 'run_at'
    fields[#fields + 1] = run_at
  end
  call('HSET', key, 'state', state, 'submission', submission, 'body', body, unpack(fields))
  if has_options then
    set_alarm({ id = id, state = state, run_at = run_at, deadline = deadline })
  end
  if state == 'queued' then
    enqueue(id, pool, score)
  end
  waiting, bytes = waiting + 1, bytes + #body
  move(priority, 'submitted', state)
  group.admitted = group.admitted + 1
  bump('backlog_bytes', #body)
  log_each(EVENT[state], id, 'priority', priority)
  return WORD[state]
end

local words, failed = guard_each(#starts, admit)
-- Entries are done when none of their tasks failed. (Entries of two streams may have the same id.)
local TURNED_DOWN = { REFUSED = true, CONFLICT = true, GONE = true }
local done, n = {}, 1
while n <= #starts do
  local entry, stream, caller = ARGV[starts[n] + 1], group_of[n].stream, group_of[n].caller
  local is_failing, is_taken = false, false
  repeat
    is_failing, is_taken = is_failing or failed[n], is_taken or not TURNED_DOWN[words[n]]
    n = n + 1
  until n > #starts or ARGV[starts[n] + 1] ~= entry or group_of[n].stream ~= stream
  if not is_failing then
    local ids = done[stream] or {}
    done[stream] = ids
    ids[#ids + 1] = entry
    if is_taken then
      answer(caller, stream, entry)
    end
  end
end
write_types()
return close_batch(finish_tasks, words, 'distributor', done)
