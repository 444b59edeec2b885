#!lua
-- Imposes a status on agents on an operator's request, draining or maintenance, or ends that. The status that an agent
-- reports meanwhile is stored, and applies afterwards. The last request counts. A request is not a sign of life: a stale agent stays stale.
-- include: base entries replies batches agents audit
-- keys: agent:{id} hash w | in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | caller or '' | agent_id | imposes: draining or maintenance, or '' to resume
-- Returns {words}. Words: OK; UNKNOWN (no such agent, or it left); STALE (a later request of an operator came first);
--   GONE (the entry was handled before); ERROR <why> (not consumed). An answer of ok has {"status":status}, the current
--   one
-- Events in log:agents: agent.changed
local STREAM = 'in:control:registry'

local function begin(agent, imposes)
  if not agent.drained_from then
    agent.drained_from = agent.status == 'stale' and (agent.resumes_as or 'active') or agent.status
    call('HSET', P .. 'agent:' .. agent.id, 'drained_from', agent.drained_from)
  end
  if imposes == 'draining' then
    agent.imposed = nil
    call('HDEL', P .. 'agent:' .. agent.id, 'imposed')
  else
    agent.imposed = imposes
    call('HSET', P .. 'agent:' .. agent.id, 'imposed', imposes)
  end
  return agent.status == 'stale' and 'stale' or imposes
end

local function resume(agent)
  local own = agent.drained_from
  if not own then
    return agent.status
  end
  agent.drained_from, agent.imposed = nil, nil
  call('HDEL', P .. 'agent:' .. agent.id, 'drained_from', 'imposed')
  if agent.status == 'stale' then
    call('HSET', P .. 'agent:' .. agent.id, 'resumes_as', own)
    return 'stale'
  end
  return own
end

local function drain(i)
  local entry, caller, id, imposes = unpack(ARGV, i, i + 3)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  if not agent.known or agent.status == 'inactive' then
    answer(caller, STREAM, entry, 'agent_not_found', "Agent '" .. id .. "' not found")
    return 'UNKNOWN'
  elseif not is_later(entry, agent.drain_id) then
    answer_with(caller, STREAM, entry, '{"status":"' .. agent.status .. '"}')
    return 'STALE'
  end
  local before = agent.status
  local status = imposes ~= '' and begin(agent, imposes) or imposes == '' and resume(agent)
  if status ~= before then
    set_status(agent, status)
    store_health(agent, observed_now())
    bump_rev(agent)
    log_agent('agent.changed', agent)
  end
  call('HSET', P .. 'agent:' .. id, 'status', agent.status, 'rev', agent.rev, 'health_score', agent.health_score,
    'drain_id', entry)
  answer_with(caller, STREAM, entry, '{"status":"' .. agent.status .. '"}')
  return 'OK'
end

return run_batch({ group = 'registry', stream = STREAM, at = 3, width = 4, handle = drain, audit = audit })
