-- Agents: the observed clock, the health score, the status, the end of a term, and the log.
-- include: base capped orders
-- keys: agents:all set r | agents:departed zset r | inflight:{agent} set r | clock hash rw | agent:{id} hash rw
-- keys: agents:active set rw | agents:expiry zset rw | agents:lost zset rw | agents:by:{facet}:{value} set rw
-- keys: in:losses stream rw | log:agents stream w | agents:reported set w | agents:health zset rw | counters hash r
-- keys: agents:pushed set rw
-- LIMITS.missed_beats  missed heartbeats after which an agent is stale
-- LIMITS.agent_timeout_ms  ms after which an agent that declares no heartbeat interval is stale
-- LIMITS.repeat_loss_ms  ms after which a loss is announced again while tasks are still in flight
-- Orders in inbox:{agent}:critical: list_leases
local MISSED_BEATS, AGENT_TIMEOUT = tonumber(LIMITS.missed_beats), tonumber(LIMITS.agent_timeout_ms)
local REPEAT_LOSS = tonumber(LIMITS.repeat_loss_ms)

-- The types of the keys that every batch may write to are checked before anything begins: an announced loss cannot be
-- withdrawn.
local STATUSES = { 'active', 'inactive', 'busy', 'stale', 'maintenance', 'error', 'draining' }
for _, index in ipairs({ 'agents:expiry', 'agents:departed', 'agents:lost', 'agents:health' }) do
  call('ZCARD', P .. index)
end
for _, set in ipairs({ 'agents:active', 'agents:all', 'agents:reported', 'agents:pushed' }) do
  call('SCARD', P .. set)
end
for _, status in ipairs(STATUSES) do
  call('SCARD', P .. 'agents:by:status:' .. status)
end
call('XLEN', P .. 'in:losses')

-- Returns the observed clock, in ms. It stands still while the coordinator or Redis is unavailable, so that no healthy
-- agent is declared lost for that. Since the last tick it advances with the server's time, by at most 2 s.
local observed_once
local function observed_now()
  if observed_once then
    return observed_once
  end
  local clock = call('HMGET', P .. 'clock', 'observed', 'ticked_at')
  if clock[1] then
    observed_once = tonumber(clock[1]) + math.max(0, math.min(2000, now - tonumber(clock[2])))
  else
    call('HSET', P .. 'clock', 'observed', NOW, 'ticked_at', NOW)
    observed_once = now
  end
  return observed_once
end

local AGENT = {
  'agent_id', 'status', 'incarnation', 'incarnations', 'term', 'rev', 'fact_id', 'registered_id', 'beat_id', 'digest', 'facets',
  'heartbeat_interval', 'registered_obs', 'beat_obs', 'beats', 'health_score', 'registration_time', 'resumes_as',
  'drained_from', 'imposed', 'drain_id', 'deaf', 'probe', 'looked_obs', 'unread', 'delivery', 'polled_obs', 'unpolled',
  'ask', 'asked_at', 'suspects',
  'metric:cpu', 'metric:memory', 'metric:active_connections', 'metric:pending_tasks', 'shown', 'ejected',
}

local function load_agent(id)
  local values = call('HMGET', P .. 'agent:' .. id, unpack(AGENT))
  local agent = { id = id, known = values[1] and true or false }
  for i, name in ipairs(AGENT) do
    agent[name] = values[i] or nil
  end
  return agent
end

-- Returns true if a newer process took the id from this incarnation. The last eight are known; none becomes current
-- again.
local function was_superseded(agent, incarnation)
  for earlier in string.gmatch(agent.incarnations or '', '%S+') do
    if earlier == incarnation then
      return true
    end
  end
  return false
end

-- Returns why a fact of this incarnation is not about the agent's current process: SUPERSEDED if a newer process took
-- the id, UNKNOWN if its own registration was not handled yet (there is no order between in:registry and in:beats).
-- Returns nil if it is about the current process.
local function incarnation_mismatch(agent, incarnation)
  if incarnation == '' or agent.incarnation == incarnation then
    return nil
  end
  return was_superseded(agent, incarnation) and 'SUPERSEDED' or 'UNKNOWN'
end

-- Returns the ms of observed time after which an agent is stale: missed heartbeats, or a fixed time if it declares no
-- interval.
local function stale_after(interval)
  interval = tonumber(interval)
  return interval and interval * MISSED_BEATS or AGENT_TIMEOUT
end

-- The load that an agent reports is part of the distributors' views. A report that differs from the one that was shown
-- last by a step, or comes more than one and a half intervals later, is noted: every second one, so that its age never
-- seems to be three intervals, when distributors count it as old. tick_liveness shows all noted ones in one event.
local REPORT_STEP, REPORT_INTERVALS, NOT_REPORTED = 0.05, 1.5, '-'

local function has_moved(value, before)
  if value == NOT_REPORTED or before == NOT_REPORTED then
    return value ~= before
  end
  return math.abs(tonumber(value) - (tonumber(before) or 0)) >= REPORT_STEP
end

-- Notes the load metrics of an agent; its record shows them in `shown`: cpu, memory, work from elsewhere, ms.
local function note_report(agent)
  local cpu, memory = agent['metric:cpu'] or NOT_REPORTED, agent['metric:memory'] or NOT_REPORTED
  local outside = (tonumber(agent['metric:active_connections']) or 0) + (tonumber(agent['metric:pending_tasks']) or 0)
  local cpu_before, memory_before, outside_before, at = string.match(agent.shown or '', '^(%S+) (%S+) (%S+) (%d+)$')
  if at and not has_moved(cpu, cpu_before) and not has_moved(memory, memory_before)
    and tonumber(outside_before) == outside
    and now - tonumber(at) < REPORT_INTERVALS * (tonumber(agent.heartbeat_interval) or AGENT_TIMEOUT / MISSED_BEATS) then
    return
  end
  agent.shown = cpu .. ' ' .. memory .. ' ' .. tostring(outside) .. ' ' .. NOW
  call('HSET', P .. 'agent:' .. agent.id, 'shown', agent.shown)
  call('SADD', P .. 'agents:reported', agent.id)
end

local STATUS_PENALTY, DEAF_PENALTY = { error = 0.5, maintenance = 0.2, busy = 0.1 }, 0.5
-- Being ejected costs little: the agent may be good at other types of task. An end far ahead means that the server's
-- clock was changed.
local EJECTED_PENALTY, EJECTED_MOST = 0.1, 1000000

local function is_ejected(agent)
  for at in string.gmatch(agent.ejected or '', '"until":(%d+)') do
    if tonumber(at) > now and tonumber(at) <= now + EJECTED_MOST then
      return true
    end
  end
  return false
end

-- Returns the health, and its parts as text with spaces between: freshness, regularity, and the penalties for load,
-- status, ejection and deafness. Health is freshness x regularity - penalties, 0..1. Freshness is 1 while heartbeats are
-- on time and falls to 0.5 at the moment when the agent turns stale. Regularity is the share of the last ten expected
-- heartbeats that arrived. Load is the mean of cpu and memory, which are fractions; other metrics are counts.
local function health(agent, observed)
  local interval = tonumber(agent.heartbeat_interval)
  local freshness, regularity = 1, 1
  if interval then
    -- Walks back from now over the last ten expected signs of life; the registration is the first. A heartbeat counts
    -- as missed when it is half an interval late, so that one on its way costs nothing and the share does not flicker.
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
  local by_status, by_ejection = STATUS_PENALTY[agent.status] or 0, is_ejected(agent) and EJECTED_PENALTY or 0
  -- One that has not polled over HTTP is not ill: it gets nothing until it does.
  local by_deafness, by_load = agent.deaf and not agent.unpolled and DEAF_PENALTY or 0, 0
  local sum, count = 0, 0
  for _, name in ipairs({ 'metric:cpu', 'metric:memory' }) do
    local value = tonumber(agent[name])
    if value then
      sum, count = sum + math.max(0, math.min(1, value)), count + 1
    end
  end
  if count > 0 then
    local mean = sum / count
    by_load = mean > 0.8 and 0.3 or mean > 0.6 and 0.1 or 0
  end
  local score = freshness * regularity - by_load - by_status - by_ejection - by_deafness
  return math.max(0, math.min(1, score)),
    string.format('%.3f %.3f %.1f %.1f %.1f %.1f', freshness, regularity, by_load, by_status, by_ejection, by_deafness)
end

-- Puts an agent into the order of discovery: the healthiest first, those that left last.
local function index_health(agent)
  call('ZADD', P .. 'agents:health', agent.status == 'inactive' and '1' or '-' .. agent.health_score, agent.id)
end

local function log_agent(kind, agent, ...)
  log('log:agents', 'type', kind, 'agent_id', agent.id, 'rev', agent.rev,
    'status', agent.status, 'health_score', agent.health_score, ...)
end

-- Returns the status that an operator imposes on an agent; nil: none.
local function imposed_status(agent)
  return agent.drained_from and (agent.imposed or 'draining')
end

-- Returns the status that an agent gets when it reports `status`: the one that an operator imposes, if any. The
-- reported one is stored, and applies afterwards.
local function own_status(agent, status)
  if not agent.drained_from or status == 'inactive' or status == 'stale' then
    return status
  end
  if agent.drained_from ~= status then
    agent.drained_from = status
    call('HSET', P .. 'agent:' .. agent.id, 'drained_from', status)
  end
  return imposed_status(agent)
end

-- Returns the status of a stale agent that is back.
local function status_before_silence(agent)
  return imposed_status(agent) or agent.resumes_as or 'active'
end

-- Sets an agent's status: its index, and whether the agent is placeable (a member of agents:active). An agent that does
-- not read its inbox is not placeable, whatever its status.
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
    agent.drained_from, agent.imposed = nil, nil
    call('HDEL', P .. 'agent:' .. agent.id, 'drained_from', 'imposed')
  end
  if status == 'inactive' and agent.delivery == 'push' then
    call('SREM', P .. 'agents:pushed', agent.id)
  end
  local moves = agent.health_score and (agent.status == 'inactive') ~= (status == 'inactive')
  agent.status = status
  if moves then
    index_health(agent)
  end
end

-- Records whether an agent is deaf: it does not read its inbox. Returns true if that changed.
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

-- Raises the rev of an agent. That of a new record begins above those of all records that were removed: a plan that saw
-- an agent of the same id before must not fit the new one.
local function bump_rev(agent)
  local before = agent.rev or call('HGET', P .. 'counters', 'forgotten_rev')
  agent.rev = int((tonumber(before or 0) or 0) + 1)
end

-- Stores the health and its parts if it moved by 0.05, which eligibility can see; returns true if it did. The caller
-- writes the score to the record.
local function store_health(agent, observed)
  local score, parts = health(agent, observed)
  local before = tonumber(agent.health_score)
  if before and math.abs(score - before) < 0.05 then
    return false
  end
  agent.health_score = string.format('%.3f', score)
  call('HSET', P .. 'agent:' .. agent.id, 'health_parts', parts)
  index_health(agent)
  return true
end

-- Ends the agent's term: its tasks in flight are announced as lost, now and until they are reclaimed. The rest of the
-- script must not fail, or a loss is announced for a term that continues.
local function end_term(agent)
  local ended = agent.term or '0'
  agent.term = int(tonumber(ended) + 1)
  if call('SCARD', P .. 'inflight:' .. agent.id) > 0 then
    call('XADD', P .. 'in:losses', '*', 'type', 'agent.lost', 'data',
      '{"agent_id":"' .. agent.id .. '","term":' .. ended .. '}')
    call('ZADD', P .. 'agents:lost', int(now + REPEAT_LOSS), agent.id)
  end
end

-- Records a sign of life: when the agent will be stale without another one.
local function set_expiry(agent, observed)
  call('ZADD', P .. 'agents:expiry', int(observed + stale_after(agent.heartbeat_interval)), agent.id)
end

-- Asks an agent to list its leases. Only an answer to the latest question counts; `ask` identifies it.
local function ask_for_leases(agent, ask)
  agent.ask, agent.asked_at = ask, NOW
  order(agent.id, 'list_leases', 'ask', ask)
  call('HSET', P .. 'agent:' .. agent.id, 'ask', ask, 'asked_at', NOW)
end
