#!lua
-- Takes heartbeats: a sign of life, the load metrics, the number of leases held, and whether the agent is deaf (it does
-- not read its inbox). Brings a stale agent back, asks an agent for its leases when their number is not what it should be,
-- and makes a deaf one not placeable until a beat says otherwise or it registers again.
-- include: base liveness agents
-- keys: inflight:{agent} set r | agent:{id} hash w | agents:departed zset w | in:beats stream w
-- ARGV[8] number of beats, then for each:
--   entry id | caller or '' | agent id | incarnation or '' | leases held or '' | 1 if deaf or '' | number n of metrics | n times name | value
-- Returns {words}. Words: OK; UNKNOWN (this incarnation is not registered, or it left: it has to register again); SUPERSEDED; STALE (a later
--   beat came first); GONE (its entry was handled before); ERROR <why> (not consumed)
-- Events in log:agents: agent.returned, agent.deaf, agent.hears, agent.health_moved
-- Orders in inbox:{agent}:critical: list_leases (it holds another number of leases than it should)
local STREAM = 'in:beats'

local function last_ten(beats, observed)
  local kept = { int(observed) }
  for beat in string.gmatch(beats or '', '%d+') do
    if #kept < 10 then
      kept[#kept + 1] = beat
    end
  end
  return table.concat(kept, ',')
end

-- The number of leases that an agent says it holds beside the number that it should: where they differ it is asked which
-- they are, unless it was asked a moment ago. (They differ for a moment whenever an assignment or a report is on its way.)
local function compare(agent, leases, entry)
  if leases == call('SCARD', P .. 'inflight:' .. agent.id) then
    return
  end
  local pause = tonumber(agent.heartbeat_interval) or AGENT_TIMEOUT
  if not agent.asked_at or now - tonumber(agent.asked_at) >= pause then
    ask_for_leases(agent, entry)
  end
end

local function heartbeat(i, metrics_at, count)
  local entry, caller, id, incarnation, leases, deaf = unpack(ARGV, i, i + 5)
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
    -- As after a registration: what it missed while it was away is not held against it.
    agent.registered_obs, agent.beats = int(observed), ''
  end
  agent.beats, agent.beat_obs = last_ten(agent.beats, observed), int(observed)
  for j = metrics_at, metrics_at + count * 2 - 1, 2 do
    agent[ARGV[j]] = ARGV[j + 1]
  end
  local turned = set_deaf(agent, deaf == '1')
  if returned then
    set_status(agent, status_before_silence(agent))
    call('ZREM', P .. 'agents:departed', id)
  elseif turned then
    set_status(agent, agent.status)
  end
  local moved = store_health(agent, observed)
  if returned or turned or moved then
    bump_rev(agent)
  end
  expect(agent, observed)
  call('HSET', key, 'status', agent.status, 'rev', agent.rev, 'beat_id', entry, 'beats', agent.beats,
    'registered_obs', agent.registered_obs, 'beat_obs', agent.beat_obs, 'health_score', agent.health_score, 'last_heartbeat', int(entry_ms(entry)),
    unpack(ARGV, metrics_at, metrics_at + count * 2 - 1))
  if leases ~= '' then
    call('HSET', key, 'leases', leases)
    compare(agent, tonumber(leases), entry)
  end
  if returned then
    log_agent('agent.returned', agent)
  elseif turned then
    log_agent(agent.deaf and 'agent.deaf' or 'agent.hears', agent)
  elseif moved then
    log_agent('agent.health_moved', agent)
  end
  answer(caller, STREAM, entry)
  return 'OK'
end

local words, done = {}, {}
local at = 9
for _ = 1, tonumber(ARGV[8]) do
  local count = tonumber(ARGV[at + 6])
  local word, failed = guarded(heartbeat, at, at + 7, count)
  words[#words + 1] = word
  if not failed then
    done[#done + 1] = ARGV[at]
  end
  at = at + 7 + count * 2
end
finish()
consume(STREAM, 'registry', done)
return { words }
