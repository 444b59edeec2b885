#!lua flags=allow-oom
-- Reclaims single tasks of which the agents no longer hold the leases.
-- include: entries batches records tasks attempts
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed assigned>cancelled running>cancelled
-- keys: in:losses stream w
-- ARGV[3]  number of losses, then for each:
--   entry | agent_id | task_id | lease
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: OK; STALE (the task no longer has this lease; nothing
--   changed); WAIT (in:reports holds an entry older than the loss, which may report finished work; not consumed); GONE
--   (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:tasks: those of the end of an attempt
-- Orders: none; the agent itself no longer lists the lease
check_due_types()

local function reclaim_lease(i)
  local entry, agent_id, id, lease = unpack(ARGV, i, i + 3)
  if not is_present('in:losses', entry) then
    return 'GONE'
  end
  if reports_wait_before(entry) then
    return 'WAIT'
  end
  local task = load_task(id)
  if not is_held(task) or task.agent_id ~= agent_id or task.lease ~= lease then
    return 'STALE'
  end
  end_attempt(task, 'lease_lost', 'lease_lost', "agent '" .. agent_id .. "' no longer holds it", true)
  return 'OK'
end

return run_batch({
  group = 'distributor', stream = 'in:losses', at = 3, width = 4, handle = reclaim_lease, finish = finish_tasks,
})
