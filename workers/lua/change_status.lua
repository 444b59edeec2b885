#!lua
-- Changes the status of agents, and merges load metrics into those reported before.
-- include: base entries replies batches agents
-- keys: agent:{id} hash w | agents:expiry zset w | agents:departed zset w | in:registry stream w
-- ARGV[3]  number of changes, then for each:
--   entry | caller or '' | agent_id | incarnation or '' | status | fields: the number of metrics, then metric:{name} and
--   value of each
-- Returns {words}. Words: OK; UNKNOWN; SUPERSEDED; STALE (a later fact came first); GONE (the entry was handled
--   before); ERROR <why> (not consumed)
-- Events in log:agents: agent.changed
-- Events in in:losses: agent.lost (it became inactive or stale with tasks in flight)
local STREAM = 'in:registry'
-- A registration that comes afterwards brings the agent back.
local LEAVES = { inactive = true, stale = true }

local function change_status(i, last)
  local entry, caller, id, incarnation, status = unpack(ARGV, i, i + 4)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  local to = caller ~= '' and caller or id
  local mismatch = incarnation_mismatch(agent, incarnation)
  if not agent.known or agent.status == 'inactive' or mismatch == 'UNKNOWN' then
    answer(to, STREAM, entry, caller ~= '' and 'agent_not_found' or 'unknown_agent', "Agent '" .. id .. "' not found")
    return 'UNKNOWN'
  elseif mismatch then
    answer(to, STREAM, entry, 'superseded', "a newer process took agent_id '" .. id .. "'; stop this one")
    return 'SUPERSEDED'
  elseif not is_later(entry, agent.fact_id) or (LEAVES[status] and not is_later(entry, agent.registered_id)) then
    answer(caller, STREAM, entry)
    return 'STALE'
  end
  local observed = observed_now()
  for j = i + 6, last, 2 do
    agent[ARGV[j]] = ARGV[j + 1]
  end
  status = own_status(agent, status)
  local changed = agent.status ~= status
  if changed then
    if status == 'inactive' or status == 'stale' then
      end_term(agent)
      call('ZREM', P .. 'agents:expiry', id)
      call('ZADD', P .. 'agents:departed', NOW, id)
    else
      call('ZREM', P .. 'agents:departed', id)
    end
    set_status(agent, status)
  end
  if store_health(agent, observed) or changed then
    bump_rev(agent)
    log_agent('agent.changed', agent)
  end
  if status ~= 'inactive' and status ~= 'stale' then
    agent.beat_obs = int(observed)
    set_expiry(agent, observed)
  end
  call('HSET', P .. 'agent:' .. id, 'status', agent.status, 'term', agent.term, 'rev', agent.rev, 'fact_id', entry,
    'health_score', agent.health_score, 'beat_obs', agent.beat_obs, unpack(ARGV, i + 6, last))
  note_report(agent)
  answer(caller, STREAM, entry)
  return 'OK'
end

return run_batch({
  group = 'registry', stream = STREAM, at = 3, width = width_with_fields(6), handle = change_status,
})
