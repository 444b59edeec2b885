-- Messages: checks whether one can be delivered, and puts it into its receiver's inbox.
-- include: base capped batches letters
-- keys: agent:{id} hash r | messages:dead zset rw | inbox:{agent}:{lane} stream rw | log:messages stream w
-- keys: messages:expiring zset rw | history:{agent} stream w
-- LIMITS.inbox_entries  maximum number of entries in an inbox lane
-- LIMITS.inbox_critical_extra  entries that the critical lane may hold beyond that
-- LIMITS.message_kept_ms  ms that a message's record is kept after its time to live
-- LIMITS.dead_kept_ms  ms that a dead letter is kept
-- LIMITS.dead_entries  maximum number of dead letters
-- LIMITS.history_entries  messages kept in the history of an agent
-- LIMITS.history_kept_ms  ms that a history is kept after its last message
local QUOTA, CRITICAL_EXTRA = tonumber(LIMITS.inbox_entries), tonumber(LIMITS.inbox_critical_extra)
local KEPT = tonumber(LIMITS.message_kept_ms)
local DEAD_KEPT, DEAD_MOST = tonumber(LIMITS.dead_kept_ms), tonumber(LIMITS.dead_entries)
-- ms after its expiry until the router looks whether a message was read: the receiver may be removing it just then.
local EXPIRY_GRACE = 2000

-- The types of the keys that every batch may write to are checked before anything begins.
call('ZCARD', P .. 'messages:dead')
call('ZCARD', P .. 'messages:expiring')

-- Returns the ms for which the records of a message are kept: some time beyond its time to live.
local function kept_for(expires_at)
  return int(KEPT + math.max(0, expires_at - now))
end

-- Returns the ms at which a message was sent: the time in the id of its entry. An id that is ahead of the clock (the
-- clock was set back, or the sender has chosen the id) would delay its expiry for as long.
local function sent_ms(entry)
  return math.min(entry_ms(entry), now)
end

local function log_message(kind, id, ...)
  log('log:messages', 'type', kind, 'message_id', id, ...)
end

-- What the last call of `undeliverable` has found of the receiver, for the receipt.
local found = {}

-- Returns why a message cannot be delivered: a word, a code and a message; nil if it can.
local function undeliverable(lane, receiver, expires_at)
  if now >= expires_at then
    return 'EXPIRED', 'message_expired', 'its time to live passed before it was delivered'
  end
  local agent = call('HMGET', P .. 'agent:' .. receiver, 'status', 'deaf')
  if not agent[1] then
    return 'UNKNOWN', 'agent_not_found', "Agent '" .. receiver .. "' not found"
  elseif agent[1] == 'inactive' then
    return 'LEFT', 'agent_left', "agent '" .. receiver .. "' has left; replay the message when it is back"
  end
  local room = QUOTA + (lane == 'critical' and CRITICAL_EXTRA or 0)
  local ahead = call('XLEN', P .. 'inbox:' .. receiver .. ':' .. lane)
  if ahead >= room then
    return 'FULL', 'message_undeliverable', "the inbox of agent '" .. receiver .. "' is full"
  end
  found.state, found.deaf, found.ahead = agent[1], agent[2] == '1', ahead
end

-- Adds those of the named fields that a message has. A plain message has none of them; most are.
local OPTIONAL = { 'correlation_id', 'reply_to', 'reply_by', 'failed', 'late', 'hops', 'traceparent' }
local function add_optional(fields, message, names)
  if message.is_plain then
    return fields
  end
  for i = 1, #names do
    local name = names[i]
    local value = message[name]
    if value and value ~= '' and value ~= 0 then
      fields[#fields + 1] = name
      fields[#fields + 1] = type(value) == 'number' and int(value) or value
    end
  end
  return fields
end

-- Returns the fields of an inbox entry.
local RECEIVER = 10 -- where the receiver is among them
local function inbox_fields(message, receiver)
  local fields = { 'message_type', message.kind, 'data', message.payload, 'id', message.id, 'sender_id', message.sender,
    'receiver_id', receiver, 'priority', message.lane, 'timestamp', int(message.sent_at),
    'expires_at', int(message.expires_at) }
  if message.protocol and message.protocol ~= 'direct' then
    fields[#fields + 1] = 'protocol'
    fields[#fields + 1] = message.protocol
  end
  return add_optional(fields, message, OPTIONAL)
end

-- Puts an entry with the fields of a message into the inbox of an agent; returns its id.
local function append_to_inbox(message, receiver, fields)
  local inbox = receiver .. ':' .. message.lane
  local entry = call('XADD', P .. 'inbox:' .. inbox, '*', unpack(fields))
  gather('ZADD', P .. 'messages:expiring', int(message.expires_at + EXPIRY_GRACE), inbox .. ' ' .. entry .. ' ' .. message.id)
  return entry
end

-- Puts a message into the inbox of an agent; returns the id of the entry.
local function push_to_inbox(message, agent)
  local entry = append_to_inbox(message, agent, inbox_fields(message, agent))
  bump('messages_delivered', 1)
  return entry
end

-- Notes a message in the history of an agent. An entry has at most some 150 bytes, so a history is bounded by its number
-- of entries alone.
local histories = {}
local function note_history(agent, id)
  local key = P .. 'history:' .. agent
  redis.pcall('XADD', key, 'MAXLEN', '~', LIMITS.history_entries, '*', 'message_id', id)
  histories[key] = true
end

-- Ends a batch of messages: finish_words, and the writes that its messages share.
local function finish_messages(words)
  write_gathered()
  for key in pairs(histories) do
    redis.pcall('PEXPIRE', key, LIMITS.history_kept_ms)
  end
  return finish_words(words)
end

-- Removes dead letters by age and by count, a bounded number at a time.
local function forget_dead()
  local index = P .. 'messages:dead'
  local over = math.max(call('ZCOUNT', index, '-inf', int(now - DEAD_KEPT)), call('ZCARD', index) - DEAD_MOST)
  if over <= 0 then
    return
  end
  local popped = call('ZPOPMIN', index, math.min(over, 1000))
  for i = 1, #popped, 2 do
    remove_letter(popped[i])
  end
end
