#!lua
-- Changes links between agents and the hierarchy. Each change is idempotent. Both agents of a link consent, unless an
-- operator makes it; an agent may only choose its own master.
-- include: base capped entries replies batches orders links audit
-- keys: agent:{id} hash r | inbox:{agent}:{lane} stream r | links:{agent} hash rw | masters hash w
-- keys: subordinates:{agent} set rw | log:messages stream w | in:control:{kind} stream w
-- LIMITS.inbox_entries  number of entries in its critical lane from which an agent gets no request
-- LIMITS.links  maximum number of links and requests of an agent
-- LIMITS.subordinates  maximum number of subordinates of an agent
-- LIMITS.hierarchy_depth  maximum number of masters above an agent
-- ARGV[3]  number of changes, then for each:
--   entry | stream: in:links, or in:control:router for an operator's | caller or '' | kind: request, accept, remove,
--   link, set_master, clear_master | agent_id | other_id: the other agent, the master, or '' | note, for the other agent
-- Returns {words}. Words: OK; SAME (nothing changed); UNKNOWN (no such agent); LEFT (the other agent has left);
--   NOT_REQUESTED; FULL; CYCLE; GONE (the entry was handled before); ERROR <why> (not consumed). An answer of ok has
--   {"state":state}, the state of the link (or "none"), or {"master":id or null}
-- Events in log:messages: link.changed, master.changed
-- Orders in inbox:{agent}:critical: link_changed
local MOST, MOST_SUBORDINATES, DEPTH = tonumber(LIMITS.links), tonumber(LIMITS.subordinates), tonumber(LIMITS.hierarchy_depth)

-- Tells an agent of a change. The record is the truth; a lane that is full gets no order.
local function tell(agent, other, change, note)
  if call('XLEN', P .. 'inbox:' .. agent .. ':critical') < tonumber(LIMITS.inbox_entries) then
    order(agent, 'link_changed', 'agent_id', other, 'change', change, 'note', note or '')
  end
end

local function save_link(agent, other, state, by)
  call('HSET', P .. 'links:' .. agent, other, state .. ' ' .. NOW .. ' ' .. by)
end

local function log_link(change, by)
  log('log:messages', 'type', 'link.changed', 'agent_id', change.agent, 'peer_id', change.other, 'change', change.kind, 'by', by)
end

-- Returns why an agent can have no more links.
local function no_room(agent)
  if call('HLEN', P .. 'links:' .. agent) >= MOST then
    return 'FULL', 'links_full', "agent '" .. agent .. "' has " .. int(MOST) .. ' links and requests, the maximum; remove one first'
  end
end

local function make_link(change, by)
  save_link(change.agent, change.other, 'linked', by)
  save_link(change.other, change.agent, 'linked', by)
  if by == 'operator' then
    tell(change.agent, change.other, 'accepted')
  end
  tell(change.other, change.agent, 'accepted')
  log_link(change, by)
  return 'OK'
end

local function request_link(change)
  local agent, other = change.agent, change.other
  local state = link_state(agent, other)
  if state == 'linked' or state == 'requested' then
    return 'SAME'
  elseif state == 'asked' then
    return make_link(change, 'agent')
  elseif change.status == 'inactive' then
    return 'LEFT', 'agent_left', "agent '" .. other .. "' has left; request the link when it is back"
  end
  for _, one in ipairs({ agent, other }) do
    local word, code, message = no_room(one)
    if word then
      return word, code, message
    end
  end
  if call('XLEN', P .. 'inbox:' .. other .. ':critical') >= tonumber(LIMITS.inbox_entries) then
    return 'FULL', 'message_undeliverable', "the inbox of agent '" .. other .. "' is full; try again later"
  end
  save_link(agent, other, 'requested', 'agent')
  save_link(other, agent, 'asked', 'agent')
  tell(other, agent, 'requested', change.note)
  log_link(change, 'agent')
  return 'OK'
end

local function accept_link(change)
  local state = link_state(change.agent, change.other)
  if state == 'linked' then
    return 'SAME'
  elseif state ~= 'asked' then
    return 'NOT_REQUESTED', 'link_not_requested', "agent '" .. change.other .. "' has not requested a link with '"
      .. change.agent .. "'; request one yourself"
  end
  return make_link(change, 'agent')
end

local function link_by_operator(change)
  if link_state(change.agent, change.other) == 'linked' then
    return 'SAME'
  end
  for _, pair in ipairs({ { change.agent, change.other }, { change.other, change.agent } }) do
    if not link_state(pair[1], pair[2]) then
      local word, code, message = no_room(pair[1])
      if word then
        return word, code, message
      end
    end
  end
  return make_link(change, 'operator')
end

local function remove_link(change)
  if not link_state(change.agent, change.other) then
    return 'SAME'
  end
  end_link(change.agent, change.other)
  if change.by == 'operator' then
    tell(change.agent, change.other, 'removed')
  end
  tell(change.other, change.agent, 'removed', change.note)
  log_link(change, change.by)
  return 'OK'
end

-- Walks up from a master. Every ancestor within the depth is seen, and more are refused: so there is never a cycle.
local function cycle_above(agent, master)
  local above = master
  for _ = 1, DEPTH do
    if above == agent then
      return 'CYCLE', 'hierarchy_cycle', "agent '" .. master .. "' is below '" .. agent
        .. "' in the hierarchy, so it cannot be its master; clear the master of one of them first"
    end
    above = master_of(above)
    if not above then
      return nil
    end
  end
  return 'FULL', 'links_full', "agent '" .. master .. "' has " .. int(DEPTH) .. ' masters above it, the maximum'
end

local function log_master(change, master)
  log('log:messages', 'type', 'master.changed', 'agent_id', change.agent, 'master_id', master, 'by', change.by)
end

local function set_master(change)
  local agent, master = change.agent, change.other
  if master_of(agent) == master then
    return 'SAME'
  end
  local word, code, message = cycle_above(agent, master)
  if word then
    return word, code, message
  elseif call('SCARD', P .. 'subordinates:' .. master) >= MOST_SUBORDINATES then
    return 'FULL', 'links_full', "agent '" .. master .. "' has " .. int(MOST_SUBORDINATES)
      .. ' subordinates, the maximum; put an agent between them'
  end
  leave_master(agent)
  call('HSET', P .. 'masters', agent, master)
  call('SADD', P .. 'subordinates:' .. master, agent)
  log_master(change, master)
  return 'OK'
end

local function clear_master(change)
  if not leave_master(change.agent) then
    return 'SAME'
  end
  log_master(change, '')
  return 'OK'
end

local CHANGES = {
  request = request_link, accept = accept_link, remove = remove_link, link = link_by_operator,
  set_master = set_master, clear_master = clear_master,
}

local function state_json(change)
  if change.kind == 'set_master' or change.kind == 'clear_master' then
    local master = master_of(change.agent)
    return '{"master":' .. (master and '"' .. master .. '"' or 'null') .. '}'
  end
  return '{"state":"' .. (link_state(change.agent, change.other) or 'none') .. '"}'
end

local function change_links(i)
  local entry, stream, caller, kind, agent, other, note = unpack(ARGV, i, i + 6)
  if not is_present(stream, entry) then
    return 'GONE'
  end
  local change = { kind = kind, agent = agent, other = other, note = note,
    by = stream == 'in:control:router' and 'operator' or 'agent' }
  -- What is only taken away needs no record: that of the other agent may have ended.
  if kind ~= 'remove' and kind ~= 'clear_master' then
    for _, id in ipairs({ agent, other }) do
      change.status = call('HGET', P .. 'agent:' .. id, 'status')
      if not change.status then
        answer(caller, stream, entry, 'agent_not_found', "Agent '" .. id .. "' not found")
        return 'UNKNOWN'
      end
    end
  end
  local word, code, message = CHANGES[kind](change)
  if code then
    answer(caller, stream, entry, code, message)
  else
    answer_with(caller, stream, entry, state_json(change))
  end
  return word
end

return run_batch({
  group = 'router', at = 3, width = 7, handle = change_links, audit = audit,
  stream = function(i)
    return ARGV[i + 1]
  end,
})
