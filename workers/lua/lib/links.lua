-- Links between agents, the hierarchy, and what the protocols of messages allow.
-- include: base
-- keys: links:{agent} hash rw | masters hash rw | subordinates:{agent} set rw
-- A link is in the hash of both agents: the other one -> state, ms, and who made it. States: linked; requested (by the
-- agent of the hash); asked (by the other agent).
-- The receiver that stands for all subordinates of the sender. No agent has this id.
local ALL_SUBORDINATES = 'subordinates'

-- The types of the keys that a batch shares are checked before anything begins.
call('HLEN', P .. 'masters')

-- Returns the state of the link between two agents; nil: there is none.
local function link_state(agent, other)
  return string.match(call('HGET', P .. 'links:' .. agent, other) or '', '^%S+')
end

local function end_link(agent, other)
  call('HDEL', P .. 'links:' .. agent, other)
  call('HDEL', P .. 'links:' .. other, agent)
end

local function master_of(agent)
  return call('HGET', P .. 'masters', agent) or nil
end

-- Takes an agent away from its master; returns the master, if it had one.
local function leave_master(agent)
  local master = master_of(agent)
  if master then
    call('HDEL', P .. 'masters', agent)
    call('SREM', P .. 'subordinates:' .. master, agent)
  end
  return master
end

-- Ends the links of an agent whose record ends, and its place in the hierarchy; returns how many there were.
local function end_all_links(agent)
  local others, subordinates = call('HKEYS', P .. 'links:' .. agent), call('SMEMBERS', P .. 'subordinates:' .. agent)
  for _, other in ipairs(others) do
    call('HDEL', P .. 'links:' .. other, agent)
  end
  leave_master(agent)
  for _, subordinate in ipairs(subordinates) do
    call('HDEL', P .. 'masters', subordinate)
  end
  call('DEL', P .. 'links:' .. agent, P .. 'subordinates:' .. agent)
  return #others + #subordinates
end

-- Returns why the protocol of a message forbids it: a word, a code and a message; nil if it does not. The coordinator is
-- above all agents, and linked with each.
local function forbidden(protocol, sender, receiver)
  if sender == 'coordinator' and receiver ~= ALL_SUBORDINATES then
    return nil
  elseif protocol == 'peer_to_peer' then
    local state = link_state(sender, receiver)
    if state == 'linked' then
      return nil
    end
    local step = state == 'requested' and "; '" .. receiver .. "' has not accepted the request yet"
      or state == 'asked' and "; accept the request of '" .. receiver .. "' first"
      or '; request a link first, and send when it is accepted'
    return 'FORBIDDEN', 'not_linked',
      "protocol peer_to_peer: agents '" .. sender .. "' and '" .. receiver .. "' are not linked" .. step
  elseif protocol == 'hierarchical' then
    if receiver == ALL_SUBORDINATES then
      if call('SCARD', P .. 'subordinates:' .. sender) > 0 then
        return nil
      end
      return 'FORBIDDEN', 'no_subordinates',
        "protocol hierarchical: agent '" .. sender .. "' has no subordinates; set it as the master of an agent first"
    end
    local masters = call('HMGET', P .. 'masters', sender, receiver)
    if masters[1] == receiver or masters[2] == sender then
      return nil
    end
    return 'FORBIDDEN', 'not_in_hierarchy', "protocol hierarchical: agent '" .. receiver
      .. "' is neither the master nor a subordinate of '" .. sender .. "'; set the master first, or use another protocol"
  end
end
