#!lua flags=allow-oom
-- Cancels tasks on request: at once if no agent has claimed them; otherwise the agent is ordered to stop within a
-- grace.
-- include: base entries replies batches orders records tasklog tasks ends attempts
-- moves: queued>cancelled scheduled>cancelled assigned>cancelled running>cancelled
-- keys: in:tasks:{priority} stream r | inflight:{agent} set r | task:{id} hash w | tombstones zset w
-- keys: inbox:{agent}:{lane} stream w | in:requests stream w
-- LIMITS.cancel_grace_ms  ms of grace for an agent to stop, by the clock of attempts
-- ARGV[3]  number of requests, then for each:
--   entry | task_id | caller or '' | reason
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: CANCELLED; STOPPING (its agent was ordered to stop);
--   FINISHED (it has another outcome); NOT_FOUND; PENDING (its submission may still be on its way); GONE (the entry was
--   handled before); ERROR <why> (not consumed)
-- Events in log:tasks: task.cancel_requested, task.cancelled
-- Orders in inbox:{agent}:critical: stop_task (with STOPPING, once)
check_due_types()
local STREAM = 'in:requests'
local GRACE = tonumber(LIMITS.cancel_grace_ms)

-- Returns true while a submission that is older than the request may still wait in a stream.
local function is_submission_pending(entry)
  local ms = entry_ms(entry)
  for priority in pairs(LANE) do
    local first = call('XRANGE', P .. 'in:tasks:' .. priority, '-', '+', 'COUNT', 1)[1]
    -- Ids of two streams within one ms cannot be ordered: such a submission may have come first.
    if first and entry_ms(first[1]) <= ms then
      return true
    end
  end
  return false
end

local function cancel(i)
  local entry, id, caller, reason = unpack(ARGV, i, i + 3)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local task = load_task(id)
  if not task.state or task.state == 'refused' then
    if is_submission_pending(entry) then
      call('ZADD', P .. 'tombstones', int(entry_ms(entry)), id)
      answer(caller, STREAM, entry, 'pending', "task '" .. id .. "' is not known yet; it will be cancelled if it comes")
      return 'PENDING'
    end
    answer(caller, STREAM, entry, 'task_not_found', "Task '" .. id .. "' not found")
    return 'NOT_FOUND'
  elseif task.state == 'cancelled' then
    answer(caller, STREAM, entry)
    return 'CANCELLED'
  elseif task.state == 'queued' or task.state == 'scheduled' then
    end_waiting(task, 'cancelled', reason)
    answer(caller, STREAM, entry)
    return 'CANCELLED'
  elseif task.state ~= 'assigned' and task.state ~= 'running' then
    answer(caller, STREAM, entry, 'task_finished', "task '" .. id .. "' is " .. task.state .. ' already')
    return 'FINISHED'
  end
  -- Deleting the entry is the claim: with 1 the agent has not started and never will, so the attempt has to end here.
  call('SCARD', P .. 'inflight:' .. task.agent_id)
  if call('XDEL', P .. 'inbox:' .. task.agent_id .. ':' .. LANE[task.priority], task.entry) == 1 then
    end_attempt(task, 'cancelled', 'task_cancelled', reason, false)
    answer(caller, STREAM, entry)
    return 'CANCELLED'
  end
  load_rest(task)
  if not task.cancel_at then
    task.cancel_at, task.cancel_by, task.has_alarm = NOW, int(attempt_time(now) + GRACE), '1'
    set_alarm(task)
    save_assignment(task)
    call('HSET', P .. 'task:' .. id, 'cancel_at', NOW, 'cancel_by', task.cancel_by)
    order_stop(task.agent_id, id, task.lease, reason)
    log_task('task.cancel_requested', id, 'agent_id', task.agent_id)
  end
  answer(caller, STREAM, entry)
  return 'STOPPING'
end

return run_batch({
  group = 'distributor', stream = STREAM, at = 3, width = 4, handle = cancel, finish = finish_tasks,
})
