#!lua
-- Records heartbeats: a sign of life, the load metrics, the number of leases held, and whether the agent is deaf (it
-- does not read its inbox: it says so, leaves it unread, or polls it over HTTP and has stopped). A stale agent becomes
-- active again. An agent that holds another number of leases than it should is asked to list them. A deaf agent is not
-- placeable until a heartbeat says otherwise or it registers again.
-- include: base entries replies batches agents hearing
-- keys: inflight:{agent} set r | agent:{id} hash w | agents:departed zset w | in:beats stream w | unclaimed zset w
-- ARGV[3]  number of heartbeats, then for each:
--   entry | caller or '' | agent_id | incarnation or '' | leases held, or '' | deaf: 1, or 0 | polled: 1
--   (its inbox was polled over HTTP), or 0 | fields: the number of metrics, then metric:{name} and value of each
-- Returns {words}. Words: OK; UNKNOWN (this incarnation is not registered, or it left: it has to register again);
--   SUPERSEDED; STALE (a later heartbeat came first); GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:agents: agent.returned, agent.deaf, agent.hears, agent.health_moved
-- Orders in inbox:{agent}:critical: list_leases (it holds another number of leases than it should); read_inbox (it may
--   not read its inbox)
local STREAM = 'in:beats'

-- Returns the times of the last ten heartbeats, newest first.
local function last_ten(beats, observed)
  local kept = { int(observed) }
  for earlier in string.gmatch(beats or '', '%d+') do
    if #kept < 10 then
      kept[#kept + 1] = earlier
    end
  end
  return table.concat(kept, ',')
end

-- Compares the number of leases that an agent holds with the number of its tasks in flight. If they differ, the agent
-- is asked to list its leases, unless it was asked a moment ago. (They differ briefly whenever an assignment or a
-- report is on its way.)
local function compare_lease_count(agent, leases, entry)
  if leases == call('SCARD', P .. 'inflight:' .. agent.id) then
    return
  end
  local pause = tonumber(agent.heartbeat_interval) or AGENT_TIMEOUT
  if not agent.asked_at or now - tonumber(agent.asked_at) >= pause then
    ask_for_leases(agent, entry)
  end
end

local function heartbeat(i, last)
  local entry, caller, id, incarnation, leases, deaf, polled = unpack(ARGV, i, i + 6)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local agent = load_agent(id)
  local to = caller ~= '' and caller or id
  local mismatch = incarnation_mismatch(agent, incarnation)
  if not agent.known or agent.status == 'inactive' or mismatch == 'UNKNOWN' then
    answer(to, STREAM, entry, 'unknown_agent', "agent '" .. id .. "' is not registered")
    return 'UNKNOWN'
  elseif mismatch then
    answer(to, STREAM, entry, 'superseded', "a newer process took agent_id '" .. id .. "'; stop this one")
    return 'SUPERSEDED'
  elseif not is_later(entry, agent.beat_id) then
    answer(caller, STREAM, entry)
    return 'STALE'
  end
  local key = P .. 'agent:' .. id
  local observed = observed_now()
  local returned = agent.status == 'stale'
  if returned then
    -- As after a registration: heartbeats that it missed while it was away do not lower its health.
    agent.registered_obs, agent.beats = int(observed), ''
  end
  agent.beats, agent.beat_obs = last_ten(agent.beats, observed), int(observed)
  for j = i + 8, last, 2 do
    agent[ARGV[j]] = ARGV[j + 1]
  end
  if polled == '1' then
    note_poll(agent, observed)
  end
  -- An agent that polls is deaf when it stops polling. It may leave an order behind other entries for long.
  local polls = agent.delivery == 'poll'
  if polls then
    end_probe(agent)
  end
  local unread = not polls and leaves_unread(agent, observed)
  local unpolled = is_unpolled(agent, observed)
  local deaf_changed = set_deaf(agent, deaf == '1' or unread or unpolled)
  if returned then
    set_status(agent, status_before_silence(agent))
    call('ZREM', P .. 'agents:departed', id)
  elseif deaf_changed then
    set_status(agent, agent.status)
  end
  local moved = store_health(agent, observed)
  if returned or deaf_changed or moved then
    bump_rev(agent)
  end
  set_expiry(agent, observed)
  call('HSET', key, 'status', agent.status, 'rev', agent.rev, 'beat_id', entry, 'beats', agent.beats,
    'registered_obs', agent.registered_obs, 'beat_obs', agent.beat_obs, 'health_score', agent.health_score,
    'last_heartbeat', int(entry_ms(entry)), leases ~= '' and 'leases' or 'agent_id', leases ~= '' and leases or id,
    unpack(ARGV, i + 8, last))
  note_report(agent)
  if agent.deaf and deaf_changed and call('SCARD', P .. 'inflight:' .. id) > 0 then
    -- Its tasks that it has not claimed go to other agents: the next check of its claims recalls them.
    redis.pcall('ZADD', P .. 'unclaimed', 0, id)
  end
  if leases ~= '' then
    compare_lease_count(agent, tonumber(leases), entry)
  end
  if returned then
    log_agent('agent.returned', agent)
  elseif deaf_changed then
    log_agent(agent.deaf and 'agent.deaf' or 'agent.hears', agent, 'reason', agent.deaf and (unread and 'unread' or unpolled and 'unpolled' or 'reported') or '')
  elseif moved then
    log_agent('agent.health_moved', agent)
  end
  if returned then
    answer_with(to, STREAM, entry, '{"returned":true}')
  else
    answer(caller, STREAM, entry)
  end
  return 'OK'
end

return run_batch({
  group = 'registry', stream = STREAM, at = 3, width = width_with_fields(8), handle = heartbeat,
})
