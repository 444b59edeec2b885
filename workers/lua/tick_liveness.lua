#!lua flags=allow-oom
-- Ticks the observed clock, declares agents stale that missed their heartbeats, announces losses again that were not
-- reclaimed yet, removes agents that left long ago, and shows the load that agents have reported, once a second.
-- include: base capped batches agents links unread
-- keys: in:registry stream r | in:beats stream r | inflight:{agent} set r | clock hash rw | agent:{id} hash rw
-- keys: agents:expiry zset rw | agents:departed zset rw | agents:lost zset rw | agents:all set w
-- keys: suspended hash w | agents:by:{facet}:{value} set w | inbox:{agent}:{lane} stream rw | in:losses stream w
-- keys: log:agents stream w | agents:reported set w | log:reports stream w | counters hash rw
-- LIMITS.agents  maximum number of agents handled, in each part
-- LIMITS.reports  maximum number of reports in one event
-- LIMITS.departed_ttl_ms  ms after which an agent that left is removed
-- Returns {stale, repeated, forgotten, observed, lost}: three numbers of agents, the observed clock in ms, and the ids
--   of the agents that became stale, separated by spaces
-- Events in log:agents: agent.lost, agent.health_moved, agent.forgotten
-- Event in log:reports: agents.reported; reports: of each agent id, cpu, memory, work from elsewhere, ms; separated by
--   spaces; - stands for a metric that it does not report
-- Events in in:losses: agent.lost (it became stale with tasks in flight; again every LIMITS.repeat_loss_ms while it has any)
local MOST = tonumber(LIMITS.agents)
local LANES = { 'critical', 'high', 'normal', 'low' }

-- Returns true if the server is out of memory: it accepts no heartbeats then. (Memory is counted as the server does:
-- without the buffers for replicas and its append-only file.)
local function is_full()
  local info = redis.pcall('INFO', 'memory')
  local used = type(info) == 'string' and string.match(info, 'used_memory:(%d+)')
  local most = used and tonumber(string.match(info, 'maxmemory:(%d+)')) or 0
  local uncounted = used and tonumber(string.match(info, 'mem_not_counted_for_evict:(%d+)')) or 0
  return most > 0 and tonumber(used) - uncounted > most
end

-- Advances the observed clock by the time since the last tick of any registry: by at most 2 s, not at all while the
-- server accepts no sign of life, and never past the oldest one that waits to be read. So an agent is not blamed for
-- heartbeats that were not read. Time up to there counts later: a registry that always lags a little must not stop the
-- clock.
local function tick()
  local clock = call('HMGET', P .. 'clock', 'observed', 'ticked_at')
  if not clock[1] then
    call('HSET', P .. 'clock', 'observed', NOW, 'ticked_at', NOW)
    return now
  end
  local observed, ticked_at, until_ms = tonumber(clock[1]), math.min(tonumber(clock[2]), now), now
  for _, stream in ipairs({ 'in:registry', 'in:beats' }) do
    local oldest = call('XRANGE', P .. stream, '-', '+', 'COUNT', 1)[1]
    if oldest then
      until_ms = math.min(until_ms, (entry_ms(oldest[1])))
    end
  end
  if is_full() then
    until_ms = now
  else
    observed = observed + math.max(0, math.min(2000, until_ms - ticked_at))
  end
  call('HSET', P .. 'clock', 'observed', int(observed), 'ticked_at', int(math.max(ticked_at, until_ms)))
  return observed
end

local observed = tick()

-- Declares an agent stale.
local lost = {}
local function declare_stale(id)
  local agent = load_agent(id)
  if not agent.known or agent.status == 'inactive' then
    call('ZREM', P .. 'agents:expiry', id)
    return 'GONE'
  end
  end_term(agent)
  call('ZREM', P .. 'agents:expiry', id)
  local before = agent.status
  set_status(agent, 'stale')
  agent.health_score = '0.000'
  bump_rev(agent)
  call('ZADD', P .. 'agents:departed', NOW, id)
  call('HSET', P .. 'agent:' .. id, 'status', 'stale', 'term', agent.term, 'rev', agent.rev,
    'health_score', agent.health_score, 'resumes_as', before)
  log_agent('agent.lost', agent)
  lost[#lost + 1] = id
  return 'LOST'
end

-- Stores an agent's health if it moved: it decays between heartbeats.
local function decay(id)
  local agent = load_agent(id)
  if agent.known and agent.heartbeat_interval and store_health(agent, observed) then
    bump_rev(agent)
    call('HSET', P .. 'agent:' .. id, 'rev', agent.rev, 'health_score', agent.health_score)
    log_agent('agent.health_moved', agent)
  end
  return 'OK'
end

-- Announces a loss again while the agent has tasks in flight.
local function repeat_loss(id)
  local term = tonumber(call('HGET', P .. 'agent:' .. id, 'term') or '1')
  if call('SCARD', P .. 'inflight:' .. id) == 0 then
    call('ZREM', P .. 'agents:lost', id)
    return 'DONE'
  end
  call('XADD', P .. 'in:losses', '*', 'type', 'agent.lost', 'data',
    '{"agent_id":"' .. id .. '","term":' .. int(term - 1) .. '}')
  call('ZADD', P .. 'agents:lost', int(now + REPEAT_LOSS), id)
  return 'REPEATED'
end

-- Ends the messages in the inbox of an agent whose record ends, some at a time; returns true when none is left.
local function end_inbox(id)
  for _, lane in ipairs(LANES) do
    local key = P .. 'inbox:' .. id .. ':' .. lane
    local entries = call('XRANGE', key, '-', '+', 'COUNT', 200)
    for _, item in ipairs(entries) do
      end_unread(item[1], item[2], 'agent_left', "agent '" .. id .. "' left, and its record was removed")
      call('XDEL', key, item[1])
    end
    if #entries == 200 then
      return false
    end
    call('DEL', key)
  end
  return true
end

-- Removes an agent that left long ago. It must still be away, and have nothing in flight, or its tasks would be lost.
local AWAY = { inactive = true, stale = true }
local function forget(id)
  local key = P .. 'agent:' .. id
  local status = call('HGET', key, 'status')
  if status and not AWAY[status] then
    call('ZREM', P .. 'agents:departed', id)
    return 'HERE'
  elseif call('SCARD', P .. 'inflight:' .. id) > 0 then
    call('ZADD', P .. 'agents:lost', 'NX', NOW, id)
    return 'HOLDS'
  elseif not end_inbox(id) then
    return 'HOLDS'
  end
  end_all_links(id)
  for facet in string.gmatch(call('HGET', key, 'facets') or '', '%S+') do
    call('SREM', P .. 'agents:by:' .. facet, id)
  end
  call('SREM', P .. 'agents:by:status:' .. (status or 'inactive'), id)
  call('SREM', P .. 'agents:all', id)
  call('ZREM', P .. 'agents:departed', id)
  local rev = tonumber(call('HGET', key, 'rev') or 0) or 0
  if rev > (tonumber(call('HGET', P .. 'counters', 'forgotten_rev') or 0) or 0) then
    call('HSET', P .. 'counters', 'forgotten_rev', int(rev))
  end
  call('DEL', key)
  call('HDEL', P .. 'suspended', id)
  log('log:agents', 'type', 'agent.forgotten', 'agent_id', id)
  return 'FORGOTTEN'
end

-- Handles the agents that are due by an index; returns how many of them got the wanted word.
local function handle_due(index, until_ms, handle, wanted)
  local counted = 0
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. index, '-inf', int(until_ms), 'LIMIT', 0, MOST)) do
    if guarded(handle, id) == wanted then
      counted = counted + 1
    end
  end
  return counted
end

local REPORTS_EVERY = 1000
local function show_reports()
  local shown_at = tonumber(call('HGET', P .. 'clock', 'reports_at') or nil)
  if shown_at and now >= shown_at and now - shown_at < REPORTS_EVERY then
    return
  end
  local reports = {}
  for _, id in ipairs(call('SPOP', P .. 'agents:reported', LIMITS.reports)) do
    local shown = redis.pcall('HGET', P .. 'agent:' .. id, 'shown')
    if type(shown) == 'string' then
      reports[#reports + 1] = id .. ' ' .. shown
    end
  end
  if #reports > 0 then
    call('HSET', P .. 'clock', 'reports_at', NOW)
    log('log:reports', 'type', 'agents.reported', 'reports', table.concat(reports, ' '))
  end
end

local stale = handle_due('agents:expiry', observed, declare_stale, 'LOST')
-- The agents nearest to becoming stale are those that missed heartbeats.
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'agents:expiry', int(observed), int(observed + AGENT_TIMEOUT), 'LIMIT', 0, MOST)) do
  guarded(decay, id)
end
local repeated = handle_due('agents:lost', now, repeat_loss, 'REPEATED')
local forgotten = handle_due('agents:departed', now - tonumber(LIMITS.departed_ttl_ms), forget, 'FORGOTTEN')
show_reports()
finish()
return { int(stale), int(repeated), int(forgotten), int(observed), table.concat(lost, ' ') }
