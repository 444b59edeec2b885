#!lua flags=allow-oom
-- Does what is due by the clocks: run times, start and attempt timeouts, deadlines, cancel graces. Removes old records,
-- and advances the clock of attempts.
-- include: base entries batches records tasklog tasks ends attempts
-- moves: scheduled>queued scheduled>expired queued>expired
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed
-- moves: assigned>cancelled running>cancelled assigned>expired running>expired
-- keys: in:tasks:{priority} stream r | inflight:{agent} set r | clock hash rw | alarms zset rw | deadlines zset rw
-- keys: limits zset rw | unclaimed zset rw | tombstones zset rw | tasks:terminal zset rw | tasks:dead zset rw
-- keys: tasks:refused zset rw | agent:{id} hash r | task:{id} hash rw | inbox:{agent}:{lane} stream w
-- LIMITS.alarms  maximum number of alarms handled, and of agents checked that may not have claimed their tasks
-- LIMITS.terminal_entries  maximum number of terminal records kept, completed and failed apart
-- LIMITS.refused_entries  maximum number of refused records kept
-- LIMITS.terminal_ttl_ms  ms that a completed, cancelled or expired record is kept
-- LIMITS.dead_ttl_ms  ms that a failed record is kept
-- LIMITS.refused_ttl_ms  ms that a refused record is kept
-- Returns {words, loads, pools, pools_rev, raised, shared, due, timed_out}. Words: QUEUED, RECALLED, TIMED_OUT, EXPIRED, CANCELLED, KEPT
--   (nothing was due), GONE (no such task), ERROR <why> (tried again in a minute); due: what is due and was left for
--   the next call; timed_out: the leases of the attempts that took too long
-- Events in log:tasks: task.queued, task.expired, task.cancelled, and those of the end of an attempt
-- Orders in inbox:{agent}:critical: stop_task (with TIMED_OUT and EXPIRED, for claimed tasks)
read_clock()
check_due_types()
check_suspended_type()
local words, timed_out = {}, {}

-- ms by which an alarm that raised an error is delayed, so that broken records cannot crowd out the others.
local ERROR_DELAY = 60000
-- ms; a longer step means that no distributor worked, Redis was unavailable, or the server's time was changed.
local ABSENCE = 1000
-- ms for which the clock waits after an absence: agents reconnect, and report what they finished meanwhile.
local RECONNECT = 1500
-- ms; a shorter step is not written: the next call takes it again, from the same moment.
local WRITE_STEP = 250

-- Advances the clock of attempts to now, or to the oldest report that waits.
local function tick()
  local oldest = oldest_report_ms()
  local until_ms = oldest and math.min(now, oldest) or now
  local step = until_ms - attempt_clock_at
  if attempt_clock_at > now + RECONNECT then
    attempt_clock_at = now -- the server's time was set back
    step = WRITE_STEP
  elseif step > 0 then
    attempt_clock = attempt_clock + math.min(CLOCK_STEP, step)
    attempt_clock_at = step > ABSENCE and until_ms + RECONNECT or until_ms
  end
  if step >= WRITE_STEP or not is_clock_set then
    call('HSET', P .. 'clock', 'attempts', int(attempt_clock), 'attempts_at', int(attempt_clock_at))
  end
end
tick()

local function past(at)
  at = tonumber(at)
  return at and at <= now
end

local function is_over(limit)
  limit = tonumber(limit)
  return limit and limit <= attempt_clock
end

-- A held task expires when its deadline has passed and every older report has been read.
local DEADLINES_UNTIL = oldest_report_ms() and math.min(now, oldest_report_ms() - 1) or now

-- Recalls an unclaimed task; returns nil if its agent has claimed it.
local function recall(task, why)
  -- Deleting the entry is the claim: the side that gets 1 owns the task, and must be able to end the attempt. So the
  -- type of the agent's set is checked first.
  load_of(task.agent_id)
  if call('XDEL', P .. 'inbox:' .. task.agent_id .. ':' .. LANE[task.priority], task.entry) == 1 then
    suspend(task.agent_id)
    end_attempt(task, 'recalled', 'not_started', why or 'its agent did not start it in time', true)
    return 'RECALLED'
  end
  if task.start_by then
    task.start_by = nil
    save_assignment(task)
  end
end

-- Handles the alarm of a task that an agent holds: recalls it while it is unclaimed, ends it if it took too long.
local function run_held_alarm(task)
  if task.deadline and tonumber(task.deadline) <= DEADLINES_UNTIL then
    end_attempt(task, 'expired', 'task_expired', 'its deadline passed', false)
    return 'EXPIRED'
  end
  if is_over(task.cancel_by) then
    end_attempt(task, 'cancelled', 'task_cancelled', 'its agent did not stop it in time', false)
    return 'CANCELLED'
  end
  if is_over(task.timeout_at) then
    if task.state == 'assigned' and recall(task) then
      return 'RECALLED'
    end
    timed_out[#timed_out + 1] = task.lease
    end_attempt(task, 'timed_out', 'timed_out', 'the attempt took longer than its timeout', true)
    return 'TIMED_OUT'
  end
  set_alarm(task)
  return 'KEPT'
end

local function run_alarm(id)
  local task = load_rest(load_task(id))
  if not task.state then
    set_due(id)
    return 'GONE'
  elseif is_held(task) then
    return run_held_alarm(task)
  elseif task.state == 'scheduled' or task.state == 'queued' then
    if past(task.deadline) then
      end_waiting(task, 'expired', '')
      return 'EXPIRED'
    elseif task.state == 'scheduled' and past(task.run_at) then
      enqueue(id, task.pool, task.score)
      task.state = 'queued'
      set_alarm(task)
      call('HSET', P .. 'task:' .. id, 'state', 'queued', 'queued_at', NOW)
      call('HDEL', P .. 'task:' .. id, 'run_at')
      move(task.priority, 'scheduled', 'queued')
      log_each('task.queued', id, 'priority', task.priority)
      return 'QUEUED'
    end
  end
  set_alarm(task)
  return 'KEPT'
end

-- Recalls a task of an agent if it should have been claimed, or if the agent does not read its inbox; returns the time
-- by which it has to be claimed, if that is to come.
local DEAF = 'its agent sends heartbeats and does not read its inbox'
local function check_claim(agent_id, id, is_deaf)
  local task = load_rest(load_task(id))
  if task.state ~= 'assigned' or task.agent_id ~= agent_id or not task.start_by then
    return nil
  elseif not is_deaf and not is_over(task.start_by) then
    return tonumber(task.start_by)
  end
  words[#words + 1] = recall(task, is_deaf and DEAF) or 'KEPT'
end

-- Checks all tasks that an agent may not have claimed, and sets the time of the next check.
local function check_claims(agent_id)
  local again
  local is_deaf = call('HGET', P .. 'agent:' .. agent_id, 'deaf') == '1'
  for _, id in ipairs(call('SMEMBERS', P .. 'inflight:' .. agent_id)) do
    local at, failed = guarded(check_claim, agent_id, id, is_deaf)
    if failed then
      words[#words + 1] = at
      at = attempt_clock + ERROR_DELAY
    end
    again = at and math.min(again or at, at) or again
  end
  if again then
    call('ZADD', P .. 'unclaimed', int(again), agent_id)
  else
    call('ZREM', P .. 'unclaimed', agent_id)
  end
end

-- Removes the records of an index by age and by count, a bounded number at a time; returns how many are left to remove.
-- Each record must still be in a state of the index: its id may have been submitted again since.
local function remove_old(index, states, ttl, most)
  local too_old = call('ZCOUNT', P .. index, '-inf', int(now - tonumber(ttl)))
  local over = math.max(too_old, call('ZCARD', P .. index) - tonumber(most))
  if over <= 0 then
    return 0
  end
  local popped, keys = call('ZPOPMIN', P .. index, math.min(over, 1000)), {}
  for i = 1, #popped, 2 do
    local id, at = popped[i], tonumber(popped[i + 1])
    local values = redis.pcall('HMGET', P .. 'task:' .. id, 'state', 'finished_at')
    if states[values[1] or ''] then
      local finished_at = tonumber(values[2] or nil)
      if finished_at and finished_at > at then
        call('ZADD', P .. index, finished_at, id)
      else
        keys[#keys + 1] = P .. 'task:' .. id
      end
    end
  end
  if #keys > 0 then
    call('DEL', unpack(keys))
  end
  return over - #popped / 2
end

-- Removes old tombstones: a cancel that came before its task waits only while an older submission may be in a stream.
local function remove_tombstones()
  if call('ZCARD', P .. 'tombstones') == 0 then
    return
  end
  local oldest = now
  for priority in pairs(LANE) do
    local first = call('XRANGE', P .. 'in:tasks:' .. priority, '-', '+', 'COUNT', 1)[1]
    if first then
      oldest = math.min(oldest, (entry_ms(first[1])))
    end
  end
  call('ZREMRANGEBYSCORE', P .. 'tombstones', '-inf', '(' .. int(oldest))
end

-- Handles what is due by an index, up to a moment of the clock that the index uses.
local UNTIL = { alarms = now, deadlines = DEADLINES_UNTIL, limits = attempt_clock, unclaimed = attempt_clock }
local function run_due(index)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. index, '-inf', int(UNTIL[index]), 'LIMIT', 0, LIMITS.alarms)) do
    local word, failed = guarded(run_alarm, id)
    if failed then
      due_in[index][id] = int(UNTIL[index] + ERROR_DELAY)
    end
    words[#words + 1] = word
  end
end

run_due('alarms')
run_due('deadlines')
run_due('limits')
for _, agent_id in ipairs(call('ZRANGEBYSCORE', P .. 'unclaimed', '-inf', int(attempt_clock), 'LIMIT', 0, LIMITS.alarms)) do
  local word, failed = guarded(check_claims, agent_id)
  if failed then
    words[#words + 1] = word
    call('ZADD', P .. 'unclaimed', int(attempt_clock + ERROR_DELAY), agent_id)
  end
end
local result = finish_tasks(words)
-- Everything done is counted before records are removed: that uses keys whose types are not checked.
local left = remove_old('tasks:terminal', { completed = true, cancelled = true, expired = true }, LIMITS.terminal_ttl_ms, LIMITS.terminal_entries)
  + remove_old('tasks:dead', { failed = true }, LIMITS.dead_ttl_ms, LIMITS.terminal_entries)
  + remove_old('tasks:refused', { refused = true }, LIMITS.refused_ttl_ms, LIMITS.refused_entries)
guarded(remove_tombstones)
for index, until_ms in pairs(UNTIL) do
  left = left + call('ZCOUNT', P .. index, '-inf', int(until_ms))
end
result[7], result[8] = int(left), timed_out
return result
