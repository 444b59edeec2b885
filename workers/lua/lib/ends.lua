-- The end of a task, in whatever state it was.
-- include: base replies batches records tasklog tasks
-- keys: task:{id} hash rw | tasks:terminal zset w
-- Events in log:tasks, at the end of a waiting task: task.cancelled, task.expired
-- Outcomes in replies:{caller}, if the caller asked for them: task.completed, task.failed, task.cancelled, task.expired

-- Returns a JSON object with one more field, which is opaque JSON; nil or '': without it.
local function with_json(object, field, json)
  if not json or json == '' then
    return object
  end
  return string.sub(object, 1, -2) .. ',"' .. field .. '":' .. json .. '}'
end

-- Returns the error of a task as it is recorded. `detail` is opaque JSON; nil or '': none.
local function error_json(code, message, detail)
  return with_json(cjson.encode({ code = code, message = message }), 'detail', detail)
end

-- Ends a task. `body` is its result or its error as JSON, stored in `field`. `started` is the time of its start, if
-- that was not recorded before. `index` orders ended tasks by time; run_alarms removes the record by it.
local function close(task, to, field, body, index, started)
  if started then
    call('HSET', task.key, 'state', to, 'finished_at', NOW, field, body, 'started_at', started)
  else
    call('HSET', task.key, 'state', to, 'finished_at', NOW, field, body)
  end
  if task.has_alarm ~= '0' then
    set_due(task.id)
  end
  gather('ZADD', P .. index, NOW, task.id)
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

-- Ends a task that no agent holds. `to`: cancelled or expired.
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
