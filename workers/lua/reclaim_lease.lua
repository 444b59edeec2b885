#!lua flags=allow-oom
-- Takes back single tasks whose leases their agents no longer hold.
-- include: base records tasklog tasks ends attempts
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed assigned>cancelled running>cancelled
-- keys: in:losses stream w
-- ARGV[10] number of losses, then for each: entry id | agent id | task id | lease
-- Returns {words, loads, pools, pools_rev, raised}. Words: OK; STALE (the lease is not the task's any more; nothing changed);
--   WAIT (in:reports holds an entry older than the loss, which may tell of finished work; not consumed);
--   GONE (its entry was handled before); ERROR <why> (not consumed)
-- Events in log:tasks: those of the end of an attempt
-- Orders: none; the agent itself no longer lists the lease
prove_due()
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

local words, done = {}, {}
for i = 11, 10 + tonumber(ARGV[10]) * 4, 4 do
  local word, failed = guarded(reclaim_lease, i)
  words[#words + 1] = word
  if not failed and word ~= 'WAIT' then
    done[#done + 1] = ARGV[i]
  end
end
local result = finish_tasks(words)
consume('in:losses', 'distributor', done)
return result
