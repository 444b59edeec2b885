#!lua flags=allow-oom
-- Replays failed tasks on an operator's request: the same id, fresh attempts, the history of the earlier attempts is
-- kept.
-- include: base entries replies batches records tasks replays audit
-- moves: failed>queued
-- keys: task:{id} hash r | in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | task_id | caller or ''
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: REPLAYED; DUPLICATE (by this request); NOT_FOUND; NOT_DEAD
--   (it has not failed); EXPIRED (its deadline has passed); GONE (the entry was handled before); ERROR <why> (not
--   consumed)
check_due_types()
local STREAM = 'in:control:distributor'

local function replay(i)
  local entry, id, caller = unpack(ARGV, i, i + 2)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local task = load_task(id)
  if task.state and call('HGET', task.key, 'replay_id') == entry then
    answer(caller, STREAM, entry)
    return 'DUPLICATE'
  elseif not task.state or task.state == 'refused' then
    answer(caller, STREAM, entry, 'task_not_found', "Task '" .. id .. "' not found")
    return 'NOT_FOUND'
  elseif task.state ~= 'failed' then
    answer(caller, STREAM, entry, 'task_not_dead', "task '" .. id .. "' is " .. task.state .. '; only a failed one can be replayed')
    return 'NOT_DEAD'
  end
  local word = replay_task(task, entry)
  if word == 'EXPIRED' then
    answer(caller, STREAM, entry, 'task_expired', "the deadline of task '" .. id .. "' has passed; submit it under a new id")
  else
    answer(caller, STREAM, entry)
  end
  return word
end

return run_batch({
  group = 'distributor', stream = STREAM, at = 3, width = 3, handle = replay, finish = finish_tasks,
  audit = audit,
})
