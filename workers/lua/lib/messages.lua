-- Messages: checks whether one can be delivered, and puts it into its receiver's inbox.
-- include: base capped
-- keys: agent:{id} hash r | messages:dead zset rw | inbox:{agent}:{lane} stream rw | log:messages stream w
-- keys: message:{id} hash rw
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

-- Returns the fields of an inbox entry.
local RECEIVER = 10 -- where the receiver is among them
local function inbox_fields(message)
  local fields = { 'message_type', message.kind, 'data', message.payload, 'id', message.id, 'sender_id', message.sender,
    'receiver_id', message.receiver, 'priority', message.lane, 'timestamp', int(message.sent_at),
    'expires_at', int(message.expires_at) }
  for _, name in ipairs({ 'correlation_id', 'reply_to' }) do
    if message[name] and message[name] ~= '' then
      fields[#fields + 1] = name
      fields[#fields + 1] = message[name]
    end
  end
  return fields
end

-- Appends an entry to an agent's inbox; returns its id.
local function append_to_inbox(receiver, lane, fields)
  return call('XADD', P .. 'inbox:' .. receiver .. ':' .. lane, '*', unpack(fields))
end

-- Puts a message to one agent into its inbox.
local function push_to_inbox(message)
  append_to_inbox(message.receiver, message.lane, inbox_fields(message))
  bump('messages_delivered', 1)
  log_message('message.delivered', message.id, 'sender_id', message.sender, 'receiver_id', message.receiver)
end

-- Removes dead letters by age and by count, a bounded number at a time. Each record must still be a dead letter: its id
-- may have been used again since.
local function forget_dead()
  local index = P .. 'messages:dead'
  local over = math.max(call('ZCOUNT', index, '-inf', int(now - DEAD_KEPT)), call('ZCARD', index) - DEAD_MOST)
  if over <= 0 then
    return
  end
  local popped = call('ZPOPMIN', index, math.min(over, 1000))
  for i = 1, #popped, 2 do
    local key = P .. 'message:' .. popped[i]
    if redis.pcall('HGET', key, 'status') == 'dead' then
      call('DEL', key)
    end
  end
end
