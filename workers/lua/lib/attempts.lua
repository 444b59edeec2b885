-- The end of an attempt, the same for every script that can end one.
-- keys: task:{id} hash rw | inbox:{agent}:{lane} stream rw | suspended hash rw | inflight:{agent} set w
-- keys: tasks:dead zset w
-- ARGV[5]  max_attempts of a task that names none
-- ARGV[6]  ms of backoff before the second attempt
-- ARGV[7]  ms, ceiling of the backoff
-- ARGV[8]  releases by agents that had started the task before it counts as failed
-- ARGV[9]  seed of the jitter
-- Events in log:tasks: of the end of an attempt task.retried, task.failed, task.released, task.recalled, task.cancelled,
--   task.expired
-- Orders in inbox:{agent}:critical: stop_task, to who cannot know of the end: timed out, lost, expired
local LIMITS = {
  max_attempts = tonumber(ARGV[5]), backoff = tonumber(ARGV[6]), backoff_max = tonumber(ARGV[7]),
  max_releases = tonumber(ARGV[8]),
}
math.randomseed(tonumber(ARGV[9]))

-- Tells an agent, on its critical lane, to stop what it runs under a lease. The lease is the fence and this a courtesy:
-- where it cannot be written, the attempt ends all the same.
local function tell_to_stop(agent, task_id, lease, reason)
  redis.pcall('XADD', P .. 'inbox:' .. agent .. ':critical', '*', 'message_type', 'coordination', 'data', '{}',
    'order', 'stop_task', 'task_id', task_id, 'lease', lease, 'reason', reason)
end

-- An agent's keys that hold a task of a priority, proved to be of their types before anything of the task has changed.
local places = {}
local function place_of(agent, priority)
  local of_agent = places[agent]
  if not of_agent then
    load_of(agent)
    of_agent = { inflight = P .. 'inflight:' .. agent, waits = {} }
    places[agent] = of_agent
  end
  local lane = of_agent[priority]
  if not lane then
    lane = P .. 'inbox:' .. agent .. ':' .. LANE[priority]
    of_agent.waits[lane] = call('XLEN', lane) > 0
    of_agent[priority] = lane
  end
  return of_agent, lane
end

-- Suspends an agent: dispatch gives it nothing until the registry has handled another fact of the agent's. It returned a
-- task that it had not started, and would return the next one as well.
local function prove_suspended()
  call('HLEN', P .. 'suspended')
end

local function suspend(agent_id)
  call('HSET', P .. 'suspended', agent_id, last_facts(agent_id))
end

-- Takes the agent off a task, and with it the task's inbox entry, if it is still there; answers the entry's lane.
local function unassign(task)
  local place, lane = place_of(task.agent_id, task.priority)
  if place.waits[lane] then
    gather('XDEL', lane, task.entry)
  end
  gather('SREM', place.inflight, task.id)
  return lane
end

-- The story of an attempt that did not complete: one JSON object a line, the last twenty.
local function tell_attempt(task, how, code, message)
  local line = cjson.encode({
    attempt = tonumber(task.attempt), agent_id = task.agent_id, lease = task.lease, how = how, code = code,
    message = message, assigned_at = tonumber(task.assigned_at), started_at = tonumber(task.started_at), ended_at = now,
  })
  local kept = { line }
  for earlier in string.gmatch(task.attempts or '', '[^\n]+') do
    kept[#kept + 1] = earlier
    if #kept == 20 then
      break
    end
  end
  call('HSET', task.key, 'attempts', table.concat(kept, '\n'))
end

-- Puts a task that lost its agent back: it waits out `delay` ms as scheduled.
local function reschedule(task, delay, counter, count)
  local key = task.key
  local from = task.state
  task.state, task.run_at = 'scheduled', int(now + delay)
  task.start_by, task.timeout_at, task.cancel_by = nil, nil, nil
  set_alarm(task)
  task.has_extras = '1'
  call('HSET', key, 'state', 'scheduled', 'submission', pack_submission(task), 'run_at', task.run_at, 'attempt', task.attempt,
    counter, count)
  call('HDEL', key, 'assignment', 'started_at', 'progress', 'progress_at')
  move(task.priority, from, 'scheduled')
  bump('backlog_bytes', call('HSTRLEN', key, 'body'))
end

-- The ends of a claimed attempt that its agent does not know of yet: it is told to stop.
local UNKNOWN_TO_AGENT = { timed_out = true, agent_lost = true, expired = true }

-- Puts back a task that its agent did not finish, after a wait that doubles up to 5 s with each such return.
local function put_back(task, how, field, count, message)
  reschedule(task, math.min(5000, 100 * 2 ^ math.min(count - 1, 10)), field, int(count))
  bump('released', 1)
  log_task('task.' .. how, task.id, 'agent_id', task.agent_id, 'attempt', task.attempt, 'message', message)
end

-- The one way in which an attempt ends without a result. `how`: failed, timed_out, agent_lost and lease_lost count against
-- max_attempts; released counts against max_releases when the agent had started the task; recalled, and released before
-- the start, never fail a task; cancelled and expired end it.
local function end_attempt(task, how, code, message, retryable)
  load_rest(task)
  local lane = unassign(task)
  if UNKNOWN_TO_AGENT[how] and call('XDEL', lane, task.entry) == 0 then
    tell_to_stop(task.agent_id, task.id, task.lease, message)
  end
  tell_attempt(task, how, code, message)
  if how == 'expired' then
    expired(task)
    return
  end
  if how == 'cancelled' or task.cancel_at then
    cancelled(task, message)
    return
  end
  if how == 'released' or how == 'recalled' then
    if task.state ~= 'running' and not task.started_at then
      put_back(task, how, 'returns', (tonumber(task.returns) or 0) + 1, message)
      return
    end
    local releases = (tonumber(task.releases) or 0) + 1
    if releases <= LIMITS.max_releases then
      put_back(task, how, 'releases', releases, message)
      return
    end
    code, message = 'released_too_often', 'given back ' .. int(releases) .. ' times; last: ' .. message
  else
    local failures = (tonumber(task.failures) or 0) + 1
    if retryable and failures < (tonumber(task.max_attempts) or LIMITS.max_attempts) then
      local backoff = (tonumber(task.backoff_ms) or LIMITS.backoff) * 2 ^ (failures - 1)
      backoff = math.min(backoff, tonumber(task.backoff_max_ms) or LIMITS.backoff_max)
      reschedule(task, math.floor(backoff * math.random()), 'failures', int(failures))
      bump('retried', 1)
      log_task('task.retried', task.id, 'agent_id', task.agent_id, 'attempt', task.attempt, 'how', how, 'code', code,
        'message', message, 'run_at', task.run_at)
      return
    end
    call('HSET', task.key, 'failures', int(failures))
  end
  close(task, 'failed', 'error', error_json(code, message), 'tasks:dead')
  log_task('task.failed', task.id, 'agent_id', task.agent_id, 'attempt', task.attempt, 'how', how, 'code', code,
    'message', message)
end
