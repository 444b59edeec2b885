#!lua flags=allow-oom
-- Deregisters agents: they get nothing new, their tasks go to other agents, and their data stays for a while.
-- include: base entries replies batches agents audit
-- keys: agent:{id} hash w | agents:expiry zset w | agents:departed zset w | in:registry stream w
-- keys: in:control:{kind} stream w
-- LIMITS.departed_ttl_ms  ms after which an agent that left is removed
-- ARGV[3]  the stream, without namespace: in:registry, or in:control:registry for an operator's request
-- ARGV[4]  number of agents, then for each:
--   entry | caller or '' | agent_id | incarnation or '' | forget_after_ms: it is removed then, if sooner, or ''
-- Returns {words}. Words: OK; UNKNOWN; SUPERSEDED (a newer process has the id; it stays); STALE (a later fact came
--   first); GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:agents: agent.deregistered
-- Events in in:losses: agent.lost (it left with tasks in flight)
local KEPT, STREAM = tonumber(LIMITS.departed_ttl_ms), ARGV[3]

-- Returns true if a request comes after a fact of the agent. Ids of two streams within one ms cannot be ordered: an
-- operator's request counts as the later one.
local function comes_after(entry, than)
  return is_later(entry, than) or (STREAM ~= 'in:registry' and entry_ms(entry) == entry_ms(than))
end

-- Returns when an agent counts as departed: earlier than now if it is removed sooner than others.
local function departed_at(forget_after_ms)
  if forget_after_ms == '' then
    return now
  end
  return now - math.max(0, KEPT - tonumber(forget_after_ms))
end

local function deregister(i)
  local entry, caller, id, incarnation, forget_after_ms = unpack(ARGV, i, i + 4)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  local mismatch = incarnation_mismatch(agent, incarnation)
  if not agent.known or mismatch == 'UNKNOWN' then
    answer(caller, STREAM, entry, 'agent_not_found', "Agent '" .. id .. "' not found")
    return 'UNKNOWN'
  elseif mismatch then
    answer(caller, STREAM, entry, 'superseded', "a newer process took agent_id '" .. id .. "'")
    return 'SUPERSEDED'
  elseif not comes_after(entry, agent.fact_id) or not comes_after(entry, agent.registered_id) then
    answer(caller, STREAM, entry)
    return 'STALE'
  end
  if agent.status ~= 'inactive' then
    end_term(agent)
    set_status(agent, 'inactive')
    bump_rev(agent)
    call('ZREM', P .. 'agents:expiry', id)
    call('ZADD', P .. 'agents:departed', int(departed_at(forget_after_ms)), id)
    call('HSET', P .. 'agent:' .. id, 'status', 'inactive', 'term', agent.term, 'rev', agent.rev, 'fact_id', entry)
    log_agent('agent.deregistered', agent)
  end
  answer(caller, STREAM, entry)
  return 'OK'
end

return run_batch({ group = 'registry', stream = STREAM, at = 4, width = 5, handle = deregister, audit = audit })
