-- Whether an agent reads its inbox. One that sends heartbeats and leaves its inbox unread is deaf, whatever it says. So is
-- one that polls its inbox over HTTP, while it does not poll.
-- include: base orders agents
-- keys: inbox:{agent}:{lane} stream rw | agent:{id} hash w | agents:pushed set w
-- Orders in inbox:{agent}:critical: read_inbox
-- Old entries alone prove nothing: a message stays until its handler has ended. So the agent gets an order that every
-- agent deletes as soon as it reads it. If it is still there after three heartbeats and three intervals of the observed
-- clock, at least LEAST ms, the agent does not read its inbox, until the order is gone. (A process that was frozen sends
-- its first heartbeat again before it can read.) A lane of a wrong type is as an empty one: the heartbeat counts.
local LEAST = 10000
local INBOX_LANES = { 'critical', 'high', 'normal', 'low' }

-- Returns true while the order is in the inbox.
local function has_probe(agent)
  local entry = string.match(agent.probe, '^%S+')
  return redis.pcall('XRANGE', P .. 'inbox:' .. agent.id .. ':critical', entry, entry)[1] ~= nil
end

-- Ends the observation: the agent has read the order, or another process has taken its place.
local function end_probe(agent)
  if agent.probe then
    redis.pcall('XDEL', P .. 'inbox:' .. agent.id .. ':critical', (string.match(agent.probe, '^%S+')))
    call('HDEL', P .. 'agent:' .. agent.id, 'probe', 'unread')
    agent.probe, agent.unread = nil, nil
  end
end

-- Returns true if an agent was found to leave its inbox unread, and has not read it since.
local function is_unread(agent)
  if agent.unread and not has_probe(agent) then
    end_probe(agent)
  end
  return agent.unread ~= nil
end

-- Returns true if a lane of the inbox begins with an entry of that age, in ms.
local function has_old_entry(agent, age)
  local lanes = {}
  for i, lane in ipairs(INBOX_LANES) do
    lanes[i] = P .. 'inbox:' .. agent.id .. ':' .. lane
  end
  if call('EXISTS', unpack(lanes)) == 0 then
    return false
  end
  for _, lane in ipairs(lanes) do
    local first = redis.pcall('XRANGE', lane, '-', '+', 'COUNT', 1)[1]
    if first and entry_ms(first[1]) <= now - age then
      return true
    end
  end
  return false
end

local function beats_since(agent, since)
  local count = 0
  for beat in string.gmatch(agent.beats, '%d+') do
    count = count + (tonumber(beat) > since and 1 or 0)
  end
  return count
end

-- Looks at the inbox of an agent that has sent a heartbeat, at most every third interval; returns true while it leaves
-- the inbox unread.
local function leaves_unread(agent, observed)
  local interval = tonumber(agent.heartbeat_interval) or AGENT_TIMEOUT / MISSED_BEATS
  local patience = math.max(LEAST, interval * MISSED_BEATS)
  if agent.probe then
    local since = tonumber(string.match(agent.probe, '%S+$'))
    if not has_probe(agent) then
      end_probe(agent)
    elseif not agent.unread and observed - since >= patience and beats_since(agent, since) >= MISSED_BEATS then
      agent.unread = NOW
      call('HSET', P .. 'agent:' .. agent.id, 'unread', NOW)
    end
  elseif observed - (tonumber(agent.looked_obs) or 0) >= patience then
    call('HSET', P .. 'agent:' .. agent.id, 'looked_obs', int(observed))
    if has_old_entry(agent, interval) then
      local entry = order(agent.id, 'read_inbox')
      if entry then
        agent.probe = entry .. ' ' .. int(observed)
        call('HSET', P .. 'agent:' .. agent.id, 'probe', agent.probe)
      end
    end
  end
  return agent.unread ~= nil
end

-- Returns true if an agent polls its inbox, and has not done so for as long as it may be silent.
local function has_stopped_polling(agent, observed)
  local polled = tonumber(agent.polled_obs)
  return agent.delivery == 'poll' and not (polled and observed - polled < stale_after(agent.heartbeat_interval))
end

-- Records whether that is so; returns it.
local function is_unpolled(agent, observed)
  local unpolled = has_stopped_polling(agent, observed)
  if unpolled and not agent.unpolled then
    agent.unpolled = '1'
    call('HSET', P .. 'agent:' .. agent.id, 'unpolled', '1')
  elseif agent.unpolled and not unpolled then
    agent.unpolled = nil
    call('HDEL', P .. 'agent:' .. agent.id, 'unpolled')
  end
  return unpolled
end

-- Sets how an agent gets what is in its inbox: push, poll, or nil if it reads it from Redis itself.
local function set_delivery(agent, delivery)
  if agent.delivery == delivery then
    return
  end
  if delivery == 'push' then
    call('SADD', P .. 'agents:pushed', agent.id)
  elseif agent.delivery == 'push' then
    call('SREM', P .. 'agents:pushed', agent.id)
  end
  agent.delivery = delivery
  if delivery then
    call('HSET', P .. 'agent:' .. agent.id, 'delivery', delivery)
  else
    call('HDEL', P .. 'agent:' .. agent.id, 'delivery', 'polled_obs')
    agent.polled_obs = nil
  end
end

-- Records that an agent has polled its inbox: from now on nothing is pushed to it. One that reads its inbox from Redis
-- goes on doing so, and its polls are not counted.
local function note_poll(agent, observed)
  if agent.delivery then
    set_delivery(agent, 'poll')
    agent.polled_obs = int(observed)
    call('HSET', P .. 'agent:' .. agent.id, 'polled_obs', agent.polled_obs)
  end
end

-- Takes over the delivery that a registration asks for ('': it reads its inbox from Redis). A registration over HTTP
-- does not change that of a process that is present and reads its inbox from Redis; nor is an agent that polls pushed
-- to, because it registers again.
local function register_delivery(agent, incarnation, wanted, observed)
  local is_here = agent.status and agent.status ~= 'inactive' and agent.status ~= 'stale'
  if wanted == '' then
    set_delivery(agent, nil)
  elseif is_here and incarnation == '' and (agent.incarnation or '') ~= '' and not agent.delivery then
    return
  elseif wanted == 'push' and is_here and agent.delivery == 'poll' and not has_stopped_polling(agent, observed) then
    return
  else
    set_delivery(agent, wanted)
    if wanted == 'push' then
      call('SADD', P .. 'agents:pushed', agent.id)
    end
  end
end
