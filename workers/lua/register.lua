#!lua
-- Registers agents. The same incarnation again, or none, is a refresh. A new incarnation ends the term of the one
-- before. Registration also ends that an agent is deaf, unless the coordinator found that it leaves its inbox unread. An
-- agent that registers over HTTP and has to poll its inbox is deaf until it does.
-- include: base entries replies batches agents facets hearing
-- keys: agent:{id} hash w | agents:all set w | agents:departed zset w
-- keys: in:registry stream w | agents:by:{facet}:{value} set r | agents:facets set r
-- ARGV[3]  number of agents, then for each:
--   entry | caller or '' | agent_id | incarnation or '' | interval_ms: of heartbeats, or '' | delivery: push or poll (over
--   HTTP), or '' | digest of what eligibility can see | facets, separated by spaces, each facet:value with the value encoded | fields: their number, then name and
--   value of each
-- Returns {words}. Words: REGISTERED (new, or a new incarnation); REFRESHED; SUPERSEDED (a newer incarnation replaced
--   this one; nothing changed); STALE (a later fact came first; nothing changed); GONE (the entry was handled before);
--   ERROR <why> (not consumed)
-- Events in log:agents: agent.registered, agent.changed
-- Events in in:losses: agent.lost (a new incarnation, while the one before has tasks in flight)
local STREAM = 'in:registry'

-- Moves an agent to the sets of its facets.
local function index(agent, facets)
  add_facets(agent.id, facets)
  local wanted = {}
  for facet in string.gmatch(facets, '%S+') do
    wanted[facet] = true
  end
  for facet in string.gmatch(agent.facets or '', '%S+') do
    if not wanted[facet] then
      remove_facet(agent.id, facet)
    end
  end
end

-- Checks the types of the sets that the agent is in, and of those that it will be in.
local function check_index_types(agent, facets)
  call('SCARD', P .. 'agents:facets')
  for facet in string.gmatch(facets .. ' ' .. (agent.facets or ''), '%S+') do
    call('SCARD', P .. 'agents:by:' .. facet)
  end
end

-- Returns the last eight incarnations before the new one: none of them becomes current again.
local function earlier_incarnations(agent)
  local kept = { agent.incarnation }
  for earlier in string.gmatch(agent.incarnations or '', '%S+') do
    if #kept < 8 then
      kept[#kept + 1] = earlier
    end
  end
  return table.concat(kept, ' ')
end

local function register(i, last)
  local entry, caller, id, incarnation, interval, delivery, digest, facets = unpack(ARGV, i, i + 7)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  local key = P .. 'agent:' .. id
  if incarnation ~= '' and was_superseded(agent, incarnation) then
    answer(caller ~= '' and caller or id, STREAM, entry, 'superseded', "a newer process took agent_id '" .. id .. "'; stop this one")
    return 'SUPERSEDED'
  end
  -- Registrations are last-writer-wins among themselves, and so are statuses. A later status that another registry
  -- handled first stays, and the rest of the registration applies as well. But an agent that left afterwards is not
  -- brought back.
  local is_late = not is_later(entry, agent.fact_id)
  if not is_later(entry, agent.registered_id) or (is_late and agent.status == 'inactive') then
    answer(caller, STREAM, entry)
    return 'STALE'
  end
  local observed = observed_now()
  check_index_types(agent, facets)
  local is_new = not agent.known
  local replaces = agent.known and incarnation ~= '' and agent.incarnation ~= incarnation
  if replaces then
    if agent.incarnation and agent.incarnation ~= '' then
      agent.incarnations = earlier_incarnations(agent)
    end
    end_term(agent)
    -- A new process may be better than the one before.
    call('HDEL', key, 'ejected')
    agent.ejected = nil
  end
  local returns = not is_late and (agent.status == 'inactive' or agent.status == 'stale')
  local was_lost = returns and agent.status == 'stale' and not replaces
  if replaces then
    end_probe(agent)
  end
  agent.heartbeat_interval = interval ~= '' and interval or nil
  register_delivery(agent, incarnation, delivery, observed)
  local unread, unpolled = is_unread(agent), is_unpolled(agent, observed)
  local hearing_changed = set_deaf(agent, unread or unpolled)
  local is_changed = is_new or replaces or returns or hearing_changed or agent.digest ~= digest
  if is_new or replaces or returns then
    agent.registered_obs, agent.beats, agent.health_score = int(observed), '', nil
    agent.registration_time = agent.registration_time or NOW
    agent.term = agent.term or '1'
  end
  if incarnation ~= '' then
    agent.incarnation = incarnation
  elseif agent.delivery and agent.incarnation and agent.incarnation ~= '' then
    -- It takes over from a process that is away: if that comes back, it learns that it was replaced.
    agent.incarnations = earlier_incarnations(agent)
    agent.incarnation = ''
  end
  agent.beat_obs = int(observed)
  index(agent, facets)
  if is_late or (hearing_changed and not is_new and not replaces and not returns) then
    set_status(agent, agent.status)
  elseif agent.status == 'stale' and not replaces then
    set_status(agent, status_before_silence(agent))
  elseif is_new or replaces or returns then
    set_status(agent, own_status(agent, 'active'))
  end
  -- A refresh leaves the status alone, so an earlier status that another registry handles afterwards still counts.
  local sets_status = not is_late and (is_new or replaces or returns)
  if store_health(agent, observed) or is_changed then
    bump_rev(agent)
  end
  call('ZREM', P .. 'agents:departed', id)
  call('SADD', P .. 'agents:all', id)
  set_expiry(agent, observed)
  if interval == '' then
    call('HDEL', key, 'heartbeat_interval')
  else
    call('HSET', key, 'heartbeat_interval', interval)
  end
  call('HSET', key, 'agent_id', id, 'status', agent.status, 'incarnation', agent.incarnation or '',
    'incarnations', agent.incarnations or '', 'term', agent.term, 'rev', agent.rev, 'fact_id', sets_status and entry or agent.fact_id or entry,
    'registered_id', entry, 'digest', digest,
    'facets', facets, 'registered_obs', agent.registered_obs, 'beat_obs', agent.beat_obs, 'beats', agent.beats or '',
    'health_score', agent.health_score, 'registration_time', agent.registration_time, 'last_heartbeat', NOW,
    unpack(ARGV, i + 9, last))
  if is_new or replaces or returns then
    log_agent('agent.registered', agent, 'incarnation', incarnation)
  elseif is_changed then
    log_agent('agent.changed', agent)
  end
  if was_lost then
    answer_with(caller, STREAM, entry, '{"returned":true}')
  else
    answer(caller, STREAM, entry)
  end
  return (is_new or replaces) and 'REGISTERED' or 'REFRESHED'
end

return run_batch({
  group = 'registry', stream = STREAM, at = 3, width = width_with_fields(9), handle = register,
})
