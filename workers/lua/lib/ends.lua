-- The end of a task, whatever it was in.
-- keys: task:{id} hash rw | tasks:terminal zset w
-- Events in log:tasks: of the end of a task that waits task.cancelled, task.expired
-- Outcomes in replies:{caller}: task.completed, task.failed, task.cancelled, task.expired, to who asked for the outcome

-- The error of a task or an attempt, as it is recorded.
local function error_json(code, message)
  return cjson.encode({ code = code, message = message })
end

-- Ends a task for good. `body` is its result or its error as JSON, kept under `field`; `started` is when it started, if
-- that was not recorded before. The record stays until run_alarms forgets it by the `graveyard`, which orders ends by time.
local function close(task, to, field, body, graveyard, started)
  if started then
    call('HSET', task.key, 'state', to, 'finished_at', NOW, field, body, 'started_at', started)
  else
    call('HSET', task.key, 'state', to, 'finished_at', NOW, field, body)
  end
  if task.has_alarm ~= '0' then
    set_due(task.id)
  end
  gather('ZADD', P .. graveyard, NOW, task.id)
  move(task.priority, task.state, to)
  if task.caller then
    reply_outcome(task.caller, task.id, to, body)
  end
end

local function cancelled(task, reason)
  close(task, 'cancelled', 'error', error_json('task_cancelled', reason), 'tasks:terminal')
  log_task('task.cancelled', task.id, 'agent_id', task.agent_id or '', 'reason', reason)
end

local function expired(task)
  close(task, 'expired', 'error', error_json('task_expired', 'its deadline passed'), 'tasks:terminal')
  log_task('task.expired', task.id, 'agent_id', task.agent_id or '')
end

-- Ends a task that no agent holds: `to` is cancelled or expired.
local function end_waiting(task, to, reason)
  load_rest(task)
  if task.state == 'queued' then
    unqueue(task.id, task.pool)
  end
  bump('backlog_bytes', -call('HSTRLEN', task.key, 'body'))
  if to == 'expired' then
    expired(task)
  else
    cancelled(task, reason)
  end
end
