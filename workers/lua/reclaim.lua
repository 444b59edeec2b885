#!lua flags=allow-oom
-- Reclaims the tasks that lost agents had in flight, in the term that ended and in earlier ones.
-- include: base entries batches records tasks attempts
-- moves: assigned>scheduled running>scheduled assigned>failed running>failed assigned>cancelled running>cancelled
-- keys: agent:{id} hash r | inflight:{agent} set rw | agents:lost zset w | in:losses stream w
-- LIMITS.tasks_per_loss  maximum number of tasks reclaimed for one loss in one call
-- ARGV[3]  number of losses, then for each:
--   entry | agent_id | term: the one that ended
-- Returns {words, loads, pools, pools_rev, raised, shared}. Words: OK; WAIT (in:reports holds an entry older than the loss,
--   which may report finished work; not consumed); MORE (call again; not consumed); GONE (the entry was handled
--   before); ERROR <why> (not consumed)
-- Events in log:tasks: those of the end of an attempt
-- Orders in inbox:{agent}:critical: stop_task (for claimed tasks: the agent may not know that it was declared lost)
check_due_types()
local MOST = tonumber(LIMITS.tasks_per_loss)

-- Reclaims one task of an agent.
local function reclaim_task(agent_id, id, term)
  local task = load_rest(load_task(id))
  if not is_held(task) or task.agent_id ~= agent_id then
    -- Its record is gone or names another holder (flushed, or rewound by a fail-over): the set must no longer count it.
    load_of(agent_id)
    gather('SREM', P .. 'inflight:' .. agent_id, id)
    return 'FOREIGN'
  elseif (tonumber(task.term) or 0) > term then
    return 'LATER'
  end
  end_attempt(task, 'agent_lost', 'agent_lost', "agent '" .. agent_id .. "' was lost", true)
  return 'TAKEN'
end

local function reclaim(i)
  local entry, agent_id, term = unpack(ARGV, i, i + 2)
  term = tonumber(term)
  if not is_present('in:losses', entry) then
    return 'GONE'
  end
  if reports_wait_before(entry) then
    return 'WAIT'
  end
  -- One broken task must not keep the others of its agent.
  local taken, is_more, broken = 0, false, nil
  for _, id in ipairs(call('SMEMBERS', P .. 'inflight:' .. agent_id)) do
    if taken == MOST then
      is_more = true
      break
    end
    local word, failed = guarded(reclaim_task, agent_id, id, term)
    if failed then
      broken = string.sub(word, #'ERROR ' + 1)
    elseif word == 'TAKEN' then
      taken = taken + 1
    end
  end
  if broken then
    error(broken, 0)
  elseif is_more then
    return 'MORE'
  end
  -- Nothing is left of this loss. Unless a later one waits, tick_liveness need not announce it again.
  local current = tonumber(call('HGET', P .. 'agent:' .. agent_id, 'term') or '0')
  if current - 1 <= term then
    call('ZREM', P .. 'agents:lost', agent_id)
  end
  return 'OK'
end

return run_batch({
  group = 'distributor', stream = 'in:losses', at = 3, width = 3, handle = reclaim, finish = finish_tasks,
})
