#!lua flags=allow-oom
-- Does what is due by the clocks: run times, start and attempt timeouts, deadlines, cancel graces; forgets old records; and
-- moves the clock of attempts.
-- include: base records tasklog tasks ends attempts
-- moves: scheduled>queued scheduled>expired queued>expired
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed
-- moves: assigned>cancelled running>cancelled assigned>expired running>expired
-- keys: in:tasks:{priority} stream r | inflight:{agent} set r | clock hash rw | alarms zset rw | deadlines zset rw
-- keys: limits zset rw | unclaimed zset rw | tombstones zset rw | tasks:terminal zset rw | tasks:dead zset rw
-- keys: tasks:refused zset rw | task:{id} hash rw | inbox:{agent}:{lane} stream w
-- ARGV[10] alarms handled at most, and agents looked after that may not have claimed what they were given
-- ARGV[11] terminal records kept at most, completed and failed apart
-- ARGV[12] refused records kept at most
-- ARGV[13] ms that a completed, cancelled or expired record is kept
-- ARGV[14] ms that a failed record is kept
-- ARGV[15] ms that a refused record is kept
-- Returns {words, loads, pools, pools_rev, raised, due}. Words: QUEUED, RECALLED, TIMED_OUT, EXPIRED, CANCELLED, KEPT (nothing was due),
--   GONE (no such task), ERROR <why> (tried again in a minute); due: what is due and was left for the next call
-- Events in log:tasks: task.queued, task.expired, task.cancelled, and those of the end of an attempt
-- Orders in inbox:{agent}:critical: stop_task (with TIMED_OUT and EXPIRED, of what was claimed)
read_clock()
prove_due()
prove_suspended()
local words = {}

-- ms by which an alarm that raised an error is put off, so that broken records cannot crowd out the others.
local PUT_OFF = 60000
-- A step longer than this means that no distributor was at work, or Redis was away, or the server's time was set: ms.
local ABSENCE = 1000
-- Agents come back within this time after an absence and report what they finished meanwhile: ms for which the clock waits.
local COMING_BACK = 1500

-- A shorter step is not written: the next call takes it again, from the same moment. ms.
local WRITE_STEP = 250

-- Advances the clock of attempts to now, or to the oldest report that waits.
local function tick()
  local oldest = oldest_report_ms()
  local until_ms = oldest and math.min(now, oldest) or now
  local step = until_ms - attempt_clock_at
  if attempt_clock_at > now + COMING_BACK then
    attempt_clock_at = now -- the server's time was set back
    step = WRITE_STEP
  elseif step > 0 then
    attempt_clock = attempt_clock + math.min(CLOCK_STEP, step)
    attempt_clock_at = step > ABSENCE and until_ms + COMING_BACK or until_ms
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

-- A deadline is over for a held task when the time has come and every older report has been read.
local DEADLINES_UNTIL = oldest_report_ms() and math.min(now, oldest_report_ms() - 1) or now

-- Takes an unclaimed task back; nil when its agent has claimed it.
local function recall(task)
  -- Deleting the entry is the claim: who gets 1 owns the task, and has to be able to end the attempt.
  load_of(task.agent_id)
  if call('XDEL', P .. 'inbox:' .. task.agent_id .. ':' .. LANE[task.priority], task.entry) == 1 then
    suspend(task.agent_id)
    end_attempt(task, 'recalled', 'not_started', 'its agent did not start it in time', true)
    return 'RECALLED'
  end
  if task.start_by then
    task.start_by = nil
    save_assignment(task)
  end
end

-- A task that an agent holds: recalled while it is unclaimed, ended when it took too long.
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
      call('HSET', P .. 'task:' .. id, 'state', 'queued')
      call('HDEL', P .. 'task:' .. id, 'run_at')
      move(task.priority, 'scheduled', 'queued')
      log_each('task.queued', id, 'priority', task.priority)
      return 'QUEUED'
    end
  end
  set_alarm(task)
  return 'KEPT'
end

-- One of an agent's tasks: recalled when it should have been claimed; answers when it has to be, if that is yet to come.
local function check_claim(agent_id, id)
  local task = load_rest(load_task(id))
  if task.state ~= 'assigned' or task.agent_id ~= agent_id or not task.start_by then
    return nil
  elseif not is_over(task.start_by) then
    return tonumber(task.start_by)
  end
  words[#words + 1] = recall(task) or 'KEPT'
end

-- Looks after what an agent may not have claimed, and at which moment to look again.
local function check_claims(agent_id)
  local again
  for _, id in ipairs(call('SMEMBERS', P .. 'inflight:' .. agent_id)) do
    local at, failed = guarded(check_claim, agent_id, id)
    if failed then
      words[#words + 1] = at
      at = attempt_clock + PUT_OFF
    end
    again = at and math.min(again or at, at) or again
  end
  if again then
    call('ZADD', P .. 'unclaimed', int(again), agent_id)
  else
    call('ZREM', P .. 'unclaimed', agent_id)
  end
end

-- Forgets the records of an index by age and by count, a bounded number at a time; returns how many are left to forget.
-- Each record must still be what the index says: its id may have been submitted again since.
local function forget(index, states, ttl, most)
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

-- A cancel that came before its task waits only while a submission older than it may still be in a stream.
local function forget_tombstones()
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

-- Handles what an index says is due until a moment, by the clock that the index goes by.
local UNTIL = { alarms = now, deadlines = DEADLINES_UNTIL, limits = attempt_clock, unclaimed = attempt_clock }
local function run_due(index)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. index, '-inf', int(UNTIL[index]), 'LIMIT', 0, ARGV[10])) do
    local word, failed = guarded(run_alarm, id)
    if failed then
      due_in[index][id] = int(UNTIL[index] + PUT_OFF)
    end
    words[#words + 1] = word
  end
end

run_due('alarms')
run_due('deadlines')
run_due('limits')
for _, agent_id in ipairs(call('ZRANGEBYSCORE', P .. 'unclaimed', '-inf', int(attempt_clock), 'LIMIT', 0, ARGV[10])) do
  local word, failed = guarded(check_claims, agent_id)
  if failed then
    words[#words + 1] = word
    call('ZADD', P .. 'unclaimed', int(attempt_clock + PUT_OFF), agent_id)
  end
end
local result = finish_tasks(words)
-- What was done is counted before anything is forgotten, which may meet keys that nobody has proved yet.
local left = forget('tasks:terminal', { completed = true, cancelled = true, expired = true }, ARGV[13], ARGV[11])
  + forget('tasks:dead', { failed = true }, ARGV[14], ARGV[11])
  + forget('tasks:refused', { refused = true }, ARGV[15], ARGV[12])
guarded(forget_tombstones)
for index, until_ms in pairs(UNTIL) do
  left = left + call('ZCOUNT', P .. index, '-inf', int(until_ms))
end
result[6] = int(left)
return result
