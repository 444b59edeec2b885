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

local function deliver_to_one(message)
  local word, code, reason = undeliverable(message.lane, message.receiver, message.expires_at)
  if word then
    return word, code, reason
  end
  message.inbox_entry = push_to_inbox(message)
  message.recipients, message.delivered = { recipient_json(message.receiver) }, 1
  if message.receiver ~= message.sender then
    note_history(message.receiver, message.id)
  end
end

-- Delivers a copy to each subordinate. A copy that cannot be delivered is lost for that agent alone, with its reason.
-- All are checked before the first copy is written: an error must not leave some that a repetition would double.
local function deliver_to_subordinates(message)
  local agents = call('SMEMBERS', P .. 'subordinates:' .. message.sender)
  table.sort(agents)
  local codes, last = {}, nil
  message.recipients, message.delivered = {}, 0
  for i, agent in ipairs(agents) do
    local word, code, reason = undeliverable(message.lane, agent, message.expires_at)
    codes[i], last = code or false, word and { word, code, reason } or last
    message.recipients[i] = recipient_json(agent, code)
    message.delivered = message.delivered + (word and 0 or 1)
  end
  if message.delivered == 0 then
    return last[1], last[2], 'none of its ' .. int(#agents) .. ' recipients could get it; of the last one: ' .. last[3]
  end
  local states = {}
  for i, agent in ipairs(agents) do
    states[2 * i - 1] = agent
    if codes[i] then
      states[2 * i] = 'dead ' .. codes[i]
    else
      states[2 * i] = 'delivered ' .. push_to_inbox(setmetatable({ receiver = agent }, { __index = message }))
      note_history(agent, message.id)
    end
  end
  local key = P .. 'copies:' .. message.id
  call('DEL', key)
  call('HSET', key, unpack(states))
end

-- Delivers a message as its protocol allows. Returns nil, and adds to it its recipients as JSON, the number of those
-- that have it, and its inbox entry if there is one recipient; or returns why it cannot be delivered: a word, a code
-- and a message.
local function deliver_message(message)
  message.is_to_all = message.protocol == 'hierarchical' and message.receiver == ALL_SUBORDINATES
  local word, code, reason = forbidden(message.protocol, message.sender, message.receiver)
  if word then
    return word, code, reason
  end
  word, code, reason = (message.is_to_all and deliver_to_subordinates or deliver_to_one)(message)
  if word then
    return word, code, reason
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
