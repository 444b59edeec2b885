-- The end of an attempt, the same for every script that can end one.
-- include: base batches orders records tasklog tasks ends histograms
-- keys: task:{id} hash rw | inbox:{agent}:{lane} stream rw | suspended hash rw | inflight:{agent} set w
-- keys: tasks:dead zset w
-- LIMITS.max_attempts  attempts of a task that sets none
-- LIMITS.backoff_ms  ms of backoff before the second attempt
-- LIMITS.backoff_max_ms  ms, maximum of the backoff
-- LIMITS.max_releases  releases by agents that had started the task before it counts as failed
-- LIMITS.jitter_seed  seed of the backoff's jitter
-- Events in log:tasks, at the end of an attempt: task.retried, task.failed, task.released, task.recalled,
--   task.cancelled, task.expired
-- Histograms: run:{how}, from the start by the agent to the end of the attempt
-- Orders in inbox:{agent}:critical: stop_task, if the agent does not know of the end: timed out, lost, expired
math.randomseed(tonumber(LIMITS.jitter_seed))

-- Returns the keys of an agent that hold a task of a priority: a table for all of its lanes, and the lane. The types of
-- the keys are checked here, before anything of the task changes.
local agent_keys = {}
local function keys_of_agent(agent, priority)
  local keys = agent_keys[agent]
  if not keys then
    load_of(agent)
    keys = { inflight = P .. 'inflight:' .. agent, has_entries = {} }
    agent_keys[agent] = keys
  end
  local lane = keys[priority]
  if not lane then
    lane = P .. 'inbox:' .. agent .. ':' .. LANE[priority]
    keys.has_entries[lane] = call('XLEN', lane) > 0
    keys[priority] = lane
  end
  return keys, lane
end

local function check_suspended_type()
  call('HLEN', P .. 'suspended')
end

-- Suspends an agent: dispatch gives it nothing until the registry has handled another fact of that agent. It returned a
-- task that it had not started, and would return the next one as well.
local function suspend(agent_id)
  call('HSET', P .. 'suspended', agent_id, last_facts(agent_id))
end

-- Removes the task from its agent's set, and its inbox entry if it is still there; returns the entry's lane.
local function unassign(task)
  local keys, lane = keys_of_agent(task.agent_id, task.priority)
  if keys.has_entries[lane] then
    gather('XDEL', lane, task.entry)
  end
  gather('SREM', keys.inflight, task.id)
  return lane
end

-- Adds an attempt that did not complete to the task's history: one JSON object a line, the last twenty, and no more
-- than fit into MOST_BYTES.
local MOST_ATTEMPTS, MOST_BYTES = 20, 32768
local function record_attempt(task, how, code, message, detail)
  local line = cjson.encode({
    attempt = tonumber(task.attempt), agent_id = task.agent_id, lease = task.lease, how = how, code = code,
    message = message, queued_at = tonumber(task.queued_at), assigned_at = tonumber(task.assigned_at),
    started_at = tonumber(task.started_at), ended_at = now,
  })
  line = with_json(with_json(line, 'placement', task.placement), 'detail', detail)
  local kept, bytes = { line }, #line
  for earlier in string.gmatch(task.attempts or '', '[^\n]+') do
    bytes = bytes + #earlier
    if #kept == MOST_ATTEMPTS or bytes > MOST_BYTES then
      break
    end
    kept[#kept + 1] = earlier
  end
  call('HSET', task.key, 'attempts', table.concat(kept, '\n'))
end

-- Puts back a task that lost its agent: it is scheduled, and waits `delay` ms.
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

-- Makes a task avoid the agent of its failed attempt: it waits in the named queue of its pool from now on. The last
-- agent is the first of the list.
local MOST_AVOIDED = 8
local function avoid_agent(task)
  local avoided = { task.agent_id }
  for agent_id in string.gmatch(call('HGET', task.key, 'avoid') or '', '%S+') do
    if agent_id ~= task.agent_id and #avoided < MOST_AVOIDED then
      avoided[#avoided + 1] = agent_id
    end
  end
  call('HSET', task.key, 'avoid', table.concat(avoided, ' '))
  task.pool = is_named(task.pool) and task.pool or task.pool .. NAMED
end

-- The ends of a claimed attempt that its agent does not know of yet: it is ordered to stop.
local UNKNOWN_TO_AGENT = { timed_out = true, agent_lost = true, expired = true }

-- Puts back a task that its agent returned, after a wait that doubles with each return, up to 5 s.
local function put_back(task, how, field, count, message)
  reschedule(task, math.min(5000, 100 * 2 ^ math.min(count - 1, 10)), field, int(count))
  bump('released', 1)
  log_task('task.' .. how, task.id, 'agent_id', task.agent_id, 'attempt', task.attempt, 'message', message)
end

-- Ends an attempt that has no result; there is no other way. `how`: failed, timed_out, agent_lost and lease_lost count
-- against max_attempts, and the next attempt avoids this agent. released counts against max_releases if the agent had started the task. recalled, and released
-- before the start, never fail a task. cancelled and expired end the task. `detail`: opaque JSON of a failure, on one line, kept with
-- the attempt and with the error of a task that failed. `ended_at`: ms at which the attempt ended, if that was before now: no coordinator may have run meanwhile.
local function end_attempt(task, how, code, message, retryable, detail, ended_at)
  load_rest(task)
  local lane = unassign(task)
  if UNKNOWN_TO_AGENT[how] and call('XDEL', lane, task.entry) == 0 then
    order_stop(task.agent_id, task.id, task.lease, message)
  end
  record_attempt(task, how, code, message, detail)
  observe('run:' .. how, task.started_at and (ended_at or now) - task.started_at)
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
    if releases <= tonumber(LIMITS.max_releases) then
      put_back(task, how, 'releases', releases, message)
      return
    end
    code, message = 'released_too_often', 'given back ' .. int(releases) .. ' times; last: ' .. message
  else
    local failures = (tonumber(task.failures) or 0) + 1
    if retryable and failures < tonumber(task.max_attempts or LIMITS.max_attempts) then
      local backoff = tonumber(task.backoff_ms or LIMITS.backoff_ms) * 2 ^ (failures - 1)
      backoff = math.min(backoff, tonumber(task.backoff_max_ms or LIMITS.backoff_max_ms))
      avoid_agent(task)
      reschedule(task, math.floor(backoff * math.random()), 'failures', int(failures))
      bump('retried', 1)
      log_task('task.retried', task.id, 'agent_id', task.agent_id, 'attempt', task.attempt, 'how', how, 'code', code,
        'message', message, 'run_at', task.run_at)
      return
    end
    call('HSET', task.key, 'failures', int(failures))
  end
  close(task, 'failed', 'error', error_json(code, message, detail), 'tasks:dead')
  log_task('task.failed', task.id, 'agent_id', task.agent_id, 'attempt', task.attempt, 'how', how, 'code', code,
    'message', message)
end
