-- Messages: checks whether one can be delivered, and puts it into its receiver's inbox.
-- include: base capped
-- keys: agent:{id} hash r | messages:dead zset r | inbox:{agent}:{lane} stream rw | log:messages stream w
-- LIMITS.inbox_entries  maximum number of entries in an inbox lane
-- LIMITS.inbox_critical_extra  entries that the critical lane may hold beyond that
-- LIMITS.message_kept_ms  ms that a message's record is kept at least
-- LIMITS.dead_kept_ms  ms that a dead letter is kept
-- LIMITS.dead_entries  maximum number of dead letters
local QUOTA, CRITICAL_EXTRA = tonumber(LIMITS.inbox_entries), tonumber(LIMITS.inbox_critical_extra)
local KEPT = tonumber(LIMITS.message_kept_ms)
local DEAD_KEPT, DEAD_MOST = tonumber(LIMITS.dead_kept_ms), tonumber(LIMITS.dead_entries)

-- The types of the keys that every batch may write to are checked before anything begins.
call('ZCARD', P .. 'messages:dead')

local function log_message(kind, id, ...)
  log('log:messages', 'type', kind, 'message_id', id, ...)
end

-- Returns why a message cannot be delivered: a word, a code and a message; nil if it can.
local function undeliverable(lane, receiver, expires_at)
  if now >= expires_at then
    return 'EXPIRED', 'message_expired', 'its time to live passed before it was delivered'
  end
  local status = call('HGET', P .. 'agent:' .. receiver, 'status')
  if not status then
    return 'UNKNOWN', 'agent_not_found', "Agent '" .. receiver .. "' not found"
  end
  local room = QUOTA + (lane == 'critical' and CRITICAL_EXTRA or 0)
  if call('XLEN', P .. 'inbox:' .. receiver .. ':' .. lane) >= room then
    return 'FULL', 'message_undeliverable', "the inbox of agent '" .. receiver .. "' is full"
  end
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

-- Puts a message into its receiver's inbox.
local function push_to_inbox(message)
  local fields = { 'message_type', message.kind, 'data', message.payload, 'id', message.id, 'sender_id', message.sender,
    'receiver_id', message.receiver, 'priority', message.lane, 'timestamp', int(message.sent_at),
    'expires_at', int(message.expires_at) }
  add_optional(fields, message, OPTIONAL)
  call('XADD', P .. 'inbox:' .. message.receiver .. ':' .. message.lane, '*', unpack(fields))
  bump('messages_delivered', 1)
  log_message('message.delivered', message.id, 'sender_id', message.sender, 'receiver_id', message.receiver)
end
