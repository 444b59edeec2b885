-- What the scripts of messages share: whether one can be delivered, and its way into the inbox.
-- keys: agent:{id} hash r | messages:dead zset r | inbox:{agent}:{lane} stream rw | log:messages stream w
-- ARGV[5] entries that an inbox lane holds at most
-- ARGV[6] entries that the critical lane holds besides
-- ARGV[7] ms that a message's record is kept at least
-- ARGV[8] ms that a dead letter is kept
-- ARGV[9] dead letters kept at most
local QUOTA, CRITICAL_EXTRA, KEPT = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local DEAD_KEPT, DEAD_MOST = tonumber(ARGV[8]), tonumber(ARGV[9])

-- What every batch may write to is of its type, or nothing is begun.
call('ZCARD', P .. 'messages:dead')

local function log_message(kind, id, ...)
  log('log:messages', 'type', kind, 'message_id', id, ...)
end

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

-- Puts a message into its receiver's inbox.
local function push_to_inbox(message)
  local fields = { 'message_type', message.kind, 'data', message.payload, 'id', message.id, 'sender_id', message.sender,
    'receiver_id', message.receiver, 'priority', message.lane, 'timestamp', int(message.sent_at),
    'expires_at', int(message.expires_at) }
  for _, name in ipairs({ 'correlation_id', 'reply_to' }) do
    if message[name] and message[name] ~= '' then
      fields[#fields + 1] = name
      fields[#fields + 1] = message[name]
    end
  end
  call('XADD', P .. 'inbox:' .. message.receiver .. ':' .. message.lane, '*', unpack(fields))
  bump('messages_delivered', 1)
  log_message('message.delivered', message.id, 'sender_id', message.sender, 'receiver_id', message.receiver)
end
