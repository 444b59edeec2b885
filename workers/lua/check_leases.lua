#!lua flags=allow-oom
-- Compares the leases that agents list with the leases in the records. A claimed lease that is missing from two lists
-- is lost; the second list is requested after the first was checked. If no record knows a lease, its agent is ordered
-- to stop.
-- include: base orders records agents
-- keys: inflight:{agent} set r | inbox:{agent}:{lane} stream r | agent:{id} hash w | in:losses stream w
-- keys: in:registry stream w
-- ARGV[3]  number of lists, then for each:
--   entry | agent_id | incarnation | ask | leases: their number, then lease and task id of each
-- Returns {words}. Words: OK; SUSPECTED (a lease is missing, the agent is asked again); LOST (a lease was missing
--   again); OUTDATED (of another process, or of an earlier question; nothing changed); WAIT (in:reports holds an entry
--   older than the list, which may report finished work; not consumed); GONE (the entry was handled before); ERROR
--   <why> (not consumed)
-- Events in in:losses: lease.lost
-- Orders in inbox:{agent}:critical: list_leases (a lease is missing), stop_task (no record knows the lease)
local function words_of(text)
  local found = {}
  for word in string.gmatch(text or '', '%S+') do
    found[word] = true
  end
  return found
end

-- Returns the lease of a task if the list should have it: the task was assigned in this term and before the list was
-- made, and its entry is gone from the inbox. (A lease that was claimed after the list was made looks the same; the
-- second list will have it. Tasks of an earlier term are reclaimed, not checked.)
local function claimed_lease(agent, id, listed_at)
  local task = load_rest(load_task(id))
  local is_own = is_held(task) and task.agent_id == agent.id
  if not is_own or tonumber(task.assigned_at) >= listed_at or tonumber(task.term) < tonumber(agent.term) then
    return nil
  end
  local lane = P .. 'inbox:' .. agent.id .. ':' .. LANE[task.priority]
  if #call('XRANGE', lane, task.entry, task.entry) > 0 then
    return nil
  end
  return task.lease
end

local function stop_if_unknown(agent_id, task_id, lease)
  local task = load_task(task_id)
  if task.lease ~= lease or not is_held(task) then
    order_stop(agent_id, task_id, lease, 'the coordinator does not know this lease')
  end
end

local function check_leases(i, last)
  local entry, id, incarnation, ask = unpack(ARGV, i, i + 3)
  if not is_present('in:registry', entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  if not agent.known or agent.incarnation ~= incarnation or agent.ask ~= ask then
    return 'OUTDATED'
  elseif reports_wait_before(entry) then
    return 'WAIT'
  end
  local listed = {}
  for j = i + 5, last, 2 do
    listed[ARGV[j]] = true
    stop_if_unknown(id, ARGV[j + 1], ARGV[j])
  end
  local suspected, missing, lost = words_of(agent.suspects), {}, false
  for _, task_id in ipairs(call('SMEMBERS', P .. 'inflight:' .. id)) do
    local lease = claimed_lease(agent, task_id, (entry_ms(entry)))
    if lease and not listed[lease] then
      if suspected[lease] then
        call('XADD', P .. 'in:losses', '*', 'type', 'lease.lost', 'data',
          '{"agent_id":"' .. id .. '","task_id":"' .. task_id .. '","lease":"' .. lease .. '"}')
        lost = true
      else
        missing[#missing + 1] = lease
      end
    end
  end
  call('HSET', P .. 'agent:' .. id, 'suspects', table.concat(missing, ' '), 'ask', '')
  if #missing > 0 then
    ask_for_leases(agent, entry)
  end
  return lost and 'LOST' or #missing > 0 and 'SUSPECTED' or 'OK'
end

return run_batch({
  group = 'registry', stream = 'in:registry', at = 3, width = width_with_fields(5), handle = check_leases,
})
