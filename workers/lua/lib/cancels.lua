-- The cancel of a task, for every script that can cancel one on request.
-- include: base orders records tasklog tasks ends attempts
-- keys: inflight:{agent} set r | task:{id} hash w | inbox:{agent}:{lane} stream w
-- LIMITS.cancel_grace_ms  ms of grace for an agent to stop, by the clock of attempts
-- Events in log:tasks: task.cancel_requested, task.cancelled
-- Orders in inbox:{agent}:critical: stop_task (with STOPPING, once)
local GRACE = tonumber(LIMITS.cancel_grace_ms)

-- Cancels a task that has a record and was admitted. Returns CANCELLED; STOPPING, if its agent was ordered to stop; or
-- FINISHED, if it has another outcome.
local function cancel_task(task, reason)
  if task.state == 'cancelled' then
    return 'CANCELLED'
  elseif task.state == 'queued' or task.state == 'scheduled' then
    end_waiting(task, 'cancelled', reason)
    return 'CANCELLED'
  elseif not is_held(task) then
    return 'FINISHED'
  end
  -- Deleting the entry is the claim: with 1 the agent has not started and never will, so the attempt has to end here.
  call('SCARD', P .. 'inflight:' .. task.agent_id)
  if call('XDEL', P .. 'inbox:' .. task.agent_id .. ':' .. LANE[task.priority], task.entry) == 1 then
    end_attempt(task, 'cancelled', 'task_cancelled', reason, false)
    return 'CANCELLED'
  end
  load_rest(task)
  if not task.cancel_at then
    task.cancel_at, task.cancel_by, task.has_alarm = NOW, int(attempt_time(now) + GRACE), '1'
    set_alarm(task)
    save_assignment(task)
    call('HSET', task.key, 'cancel_at', NOW, 'cancel_by', task.cancel_by)
    order_stop(task.agent_id, task.id, task.lease, reason)
    log_task('task.cancel_requested', task.id, 'agent_id', task.agent_id)
  end
  return 'STOPPING'
end
