-- What the scripts of agents share: the observed clock, the health score, the end of a term, and the log.
-- keys: agents:all set r | agents:departed zset r | inflight:{agent} set r | clock hash rw | agent:{id} hash rw
-- keys: agents:active set rw | agents:expiry zset rw | agents:lost zset rw | agents:by:{facet}:{value} set rw
-- keys: in:losses stream rw | inbox:{agent}:{lane} stream w | log:agents stream w

-- What every batch may write to is of its type, or nothing is begun: a loss that is announced cannot be taken back.
local STATUSES = { 'active', 'inactive', 'busy', 'stale', 'maintenance', 'error', 'draining' }
for _, index in ipairs({ 'agents:expiry', 'agents:departed', 'agents:lost' }) do
  call('ZCARD', P .. index)
end
for _, set in ipairs({ 'agents:active', 'agents:all' }) do
  call('SCARD', P .. set)
end
for _, status in ipairs(STATUSES) do
  call('SCARD', P .. 'agents:by:status:' .. status)
end
call('XLEN', P .. 'in:losses')

-- The observed clock stands still while the coordinator or Redis is away, so that no healthy agent is given up for it:
-- since the last tick it advances with the server's time, by 2 s at most.
local function observed_now()
  local clock = call('HMGET', P .. 'clock', 'observed', 'ticked_at')
  if not clock[1] then
    call('HSET', P .. 'clock', 'observed', NOW, 'ticked_at', NOW)
    return now
  end
  return tonumber(clock[1]) + math.max(0, math.min(2000, now - tonumber(clock[2])))
end

local AGENT = {
  'agent_id', 'status', 'incarnation', 'incarnations', 'term', 'rev', 'fact_id', 'registered_id', 'beat_id', 'digest', 'facets',
  'heartbeat_interval', 'registered_obs', 'beat_obs', 'beats', 'health_score', 'registration_time', 'resumes_as',
  'drained_from', 'drain_id', 'deaf',
  'ask', 'asked_at', 'suspects',
  'metric:cpu', 'metric:memory',
}

local function load_agent(id)
  local values = call('HMGET', P .. 'agent:' .. id, unpack(AGENT))
  local agent = { id = id, known = values[1] and true or false }
  for i, name in ipairs(AGENT) do
    agent[name] = values[i] or nil
  end
  return agent
end

-- Facts are last-writer-wins by entry id.
local function is_later(entry, than)
  if not than or than == '' then
    return true
  end
  local ms, seq = entry_ms(entry)
  local than_ms, than_seq = entry_ms(than)
  return ms > than_ms or (ms == than_ms and seq > than_seq)
end

-- Whether a newer process took the id from this incarnation. The last eight are known; none becomes current again.
local function was_superseded(agent, incarnation)
  for one in string.gmatch(agent.incarnations or '', '%S+') do
    if one == incarnation then
      return true
    end
  end
  return false
end

-- Why a fact of this incarnation says nothing about the agent as it is: SUPERSEDED when a newer process took the id,
-- UNKNOWN when its own registration was not handled yet (in:registry and in:beats know no order between them).
local function incarnation_mismatch(agent, incarnation)
  if incarnation == '' or agent.incarnation == incarnation then
    return nil
  end
  return was_superseded(agent, incarnation) and 'SUPERSEDED' or 'UNKNOWN'
end

-- ms of observed time after which an agent is stale: missed beats, or a fixed time when it declares no interval.
local function patience(interval)
  interval = tonumber(interval)
  return interval and interval * MISSED_BEATS or AGENT_TIMEOUT
end

local STATUS_PENALTY = { error = 0.5, maintenance = 0.2, busy = 0.1 }

-- Freshness x regularity - penalties, 0..1; coord/models/health.py computes the same for displays.
local function health(agent, observed)
  local interval = tonumber(agent.heartbeat_interval)
  local freshness, regularity = 1, 1
  if interval then
    -- Back from now over the last ten signs of life that were expected, the registration being the first: a beat is
    -- missed once it is half an interval late, so that one on its way costs nothing and the share does not flicker.
    local seen, missed, later = 0, 0, observed
    local function walk(at)
      missed = missed + math.max(0, math.floor((later - at) / interval - 0.5))
      if seen + missed < 10 then
        seen = seen + 1
      end
      later = at
    end
    for beat in string.gmatch(agent.beats or '', '%d+') do
      walk(tonumber(beat))
    end
    walk(tonumber(agent.registered_obs) or observed)
    regularity = seen / math.min(10, seen + missed)
    local age = observed - (tonumber(agent.beat_obs) or observed)
    local limit = interval * MISSED_BEATS
    if age > interval then
      freshness = math.max(0.5, 1 - 0.5 * (age - interval) / (limit - interval))
    end
  end
  local penalty = STATUS_PENALTY[agent.status] or 0
  local sum, count = 0, 0
  for _, name in ipairs({ 'metric:cpu', 'metric:memory' }) do
    local value = tonumber(agent[name])
    if value then
      sum, count = sum + value, count + 1
    end
  end
  if count > 0 then
    local mean = sum / count
    penalty = penalty + (mean > 0.8 and 0.3 or mean > 0.6 and 0.1 or 0)
  end
  return math.max(0, math.min(1, freshness * regularity - penalty))
end

local function log_agent(kind, agent, ...)
  log('log:agents', 'type', kind, 'agent_id', agent.id, 'rev', agent.rev,
    'status', agent.status, 'health_score', agent.health_score, ...)
end

-- What an agent says of itself; while an operator drains it, that is kept for afterwards.
local function own_status(agent, status)
  if not agent.drained_from or status == 'inactive' or status == 'stale' then
    return status
  end
  if agent.drained_from ~= status then
    agent.drained_from = status
    call('HSET', P .. 'agent:' .. agent.id, 'drained_from', status)
  end
  return 'draining'
end

-- The status of one that was silent and is back.
local function status_before_silence(agent)
  return agent.drained_from and 'draining' or agent.resumes_as or 'active'
end

-- Moves an agent to a status: its index, and whether it is placeable (a member of agents:active). One that does not read
-- its inbox is not, whatever its status.
local function set_status(agent, status)
  if agent.status and agent.status ~= status then
    call('SREM', P .. 'agents:by:status:' .. agent.status, agent.id)
  end
  call('SADD', P .. 'agents:by:status:' .. status, agent.id)
  if status == 'active' and not agent.deaf then
    call('SADD', P .. 'agents:active', agent.id)
  else
    call('SREM', P .. 'agents:active', agent.id)
  end
  if status == 'inactive' and agent.drained_from then
    agent.drained_from = nil
    call('HDEL', P .. 'agent:' .. agent.id, 'drained_from')
  end
  agent.status = status
end

-- Records whether an agent reads its inbox; answers whether that is new.
local function set_deaf(agent, deaf)
  if (agent.deaf == '1') == deaf then
    return false
  end
  if deaf then
    agent.deaf = '1'
    call('HSET', P .. 'agent:' .. agent.id, 'deaf', '1')
  else
    agent.deaf = nil
    call('HDEL', P .. 'agent:' .. agent.id, 'deaf')
  end
  return true
end

local function bump_rev(agent)
  agent.rev = int((tonumber(agent.rev) or 0) + 1)
end

-- Stores the health score when it has moved by 0.05, which eligibility can see; answers whether it has.
local function store_health(agent, observed)
  local score = health(agent, observed)
  local before = tonumber(agent.health_score)
  if before and math.abs(score - before) < 0.05 then
    return false
  end
  agent.health_score = string.format('%.3f', score)
  return true
end

-- Ends the agent's term: whatever it has in flight is announced as lost, now and until it is taken back. What comes after
-- it must not fail, or the loss is announced of a term that goes on.
local function end_term(agent)
  local ended = agent.term or '0'
  agent.term = int(tonumber(ended) + 1)
  if call('SCARD', P .. 'inflight:' .. agent.id) > 0 then
    call('XADD', P .. 'in:losses', '*', 'type', 'agent.lost', 'data',
      '{"agent_id":"' .. agent.id .. '","term":' .. ended .. '}')
    call('ZADD', P .. 'agents:lost', int(now + REPEAT_LOSS), agent.id)
  end
end

-- A sign of life: the agent is expected again within its patience.
local function expect(agent, observed)
  call('ZADD', P .. 'agents:expiry', int(observed + patience(agent.heartbeat_interval)), agent.id)
end

-- Asks an agent which leases it holds. An answer counts only for the latest question, which its ask identifies.
local function ask_for_leases(agent, ask)
  agent.ask, agent.asked_at = ask, NOW
  redis.pcall('XADD', P .. 'inbox:' .. agent.id .. ':critical', '*', 'message_type', 'coordination', 'data', '{}',
    'order', 'list_leases', 'ask', ask)
  call('HSET', P .. 'agent:' .. agent.id, 'ask', ask, 'asked_at', NOW)
end
