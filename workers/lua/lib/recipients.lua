-- The recipients of a message: one agent, or all subordinates of the sender, each with a copy. All copies are put into
-- the inboxes at one moment; the number of subordinates is limited for that.
-- include: base messages links
-- keys: copies:{message} hash w | subordinates:{agent} set r | message:{id} hash w
-- Events in log:messages: message.delivered

-- Returns one recipient as JSON for a receipt.
local function recipient_json(agent, code)
  if code then
    return '{"agent_id":"' .. agent .. '","code":"' .. code .. '"}'
  end
  return '{"agent_id":"' .. agent .. '","state":"' .. found.state .. '","ahead":' .. int(found.ahead)
    .. (found.deaf and ',"deaf":true' or '') .. '}'
end

-- Checks the recipients of a message; notes which of them can get it, and how a receipt shows them if one is wanted. Returns why none
-- can: a word, a code and a message; nil if one can.
local function check_recipients(message, agents)
  local word, code, reason
  message.agents, message.codes, message.recipients, message.delivered = agents, {}, {}, 0
  for i, agent in ipairs(agents) do
    word, code, reason = undeliverable(message.lane, agent, message.expires_at)
    message.codes[i] = code or false
    message.recipients[i] = message.has_receipt and recipient_json(agent, code) or nil
    message.delivered = message.delivered + (word and 0 or 1)
  end
  if message.delivered > 0 then
    return nil
  elseif message.is_to_all then
    reason = 'none of its ' .. int(#agents) .. ' recipients could get it; of the last one: ' .. reason
  end
  return word, code, reason
end

-- Returns why a message cannot be delivered, by the rule of its protocol or because of its recipients: a word, a code
-- and a message; nil if it can. Writes nothing: an error must not leave copies that a repetition would double.
local function refusal(message)
  message.is_to_all = message.protocol == 'hierarchical' and message.receiver == ALL_SUBORDINATES
  local word, code, reason = forbidden(message.protocol, message.sender, message.receiver)
  if word then
    return word, code, reason
  end
  local agents = { message.receiver }
  if message.is_to_all then
    agents = call('SMEMBERS', P .. 'subordinates:' .. message.sender)
    table.sort(agents)
  end
  return check_recipients(message, agents)
end

-- Puts a message that `refusal` has let pass into the inbox of each recipient that can get it. A copy that cannot be
-- delivered is lost for that agent alone, with its reason.
local function put_into_inboxes(message)
  local states = {}
  for i, agent in ipairs(message.agents) do
    states[2 * i - 1], states[2 * i] = agent, 'dead ' .. tostring(message.codes[i])
    if not message.codes[i] then
      local entry = push_to_inbox(message, agent)
      states[2 * i], message.inbox_entry = 'delivered ' .. entry, not message.is_to_all and entry or nil
      if agent ~= message.sender then
        note_history(agent, message.id)
      end
    end
  end
  if message.is_to_all then
    local key = P .. 'copies:' .. message.id
    call('DEL', key)
    call('HSET', key, unpack(states))
  end
  log_message('message.delivered', message.id, 'sender_id', message.sender, 'receiver_id', message.receiver,
    'recipients', int(message.delivered))
end

-- Lets the records of a message end some time after its time to live.
local function keep_records(message)
  local kept = int(KEPT + math.max(0, message.expires_at - now))
  call('PEXPIRE', P .. 'message:' .. message.id, kept)
  if message.is_to_all then
    call('PEXPIRE', P .. 'copies:' .. message.id, kept)
  end
end

-- Returns a receipt as JSON.
local function receipt_json(message)
  return '{"count":' .. int(message.delivered) .. ',"recipients":[' .. table.concat(message.recipients, ',') .. ']}'
end
