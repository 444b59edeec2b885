#!lua flags=allow-oom
-- Cancels tasks on request: at once if no agent has claimed them; otherwise the agent is ordered to stop within a
-- grace.
-- include: base entries replies batches records tasks cancels audit
-- moves: queued>cancelled scheduled>cancelled assigned>cancelled running>cancelled
-- keys: in:tasks:{priority} stream r | tombstones zset w | in:requests stream w
-- keys: in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | task_id | caller or '' | reason
--   | is_operators: 1 if the entry is in the stream of operators, 0 if it is in that of clients
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: CANCELLED; STOPPING (its agent was ordered to stop);
--   FINISHED (it has another outcome); NOT_FOUND; PENDING (its submission may still be on its way); GONE (the entry was
--   handled before); ERROR <why> (not consumed)
check_due_types()
local STREAMS = { ['0'] = 'in:requests', ['1'] = 'in:control:distributor' }
local function stream_of(first)
  return STREAMS[ARGV[first + 4]]
end

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
  local entry, id, caller, reason, is_operators = unpack(ARGV, i, i + 4)
  local stream = STREAMS[is_operators]
  if not is_present(stream, entry) then
    return 'GONE'
  end
  local task = load_task(id)
  if not task.state or task.state == 'refused' then
    if is_submission_pending(entry) then
      call('ZADD', P .. 'tombstones', int(entry_ms(entry)), id)
      answer(caller, stream, entry, 'pending', "task '" .. id .. "' is not known yet; it will be cancelled if it comes")
      return 'PENDING'
    end
    answer(caller, stream, entry, 'task_not_found', "Task '" .. id .. "' not found")
    return 'NOT_FOUND'
  end
  local word = cancel_task(task, reason)
  if word == 'FINISHED' then
    answer(caller, stream, entry, 'task_finished', "task '" .. id .. "' is " .. task.state .. ' already')
  else
    answer(caller, stream, entry)
  end
  return word
end

return run_batch({
  group = 'distributor', stream = stream_of, at = 3, width = 5, handle = cancel, finish = finish_tasks,
  audit = audit,
})
