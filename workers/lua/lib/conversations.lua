-- Conversations: which messages belong together, how long a chain of answers is, and how many messages there are.
-- include: base messages
-- keys: message:{id} hash r | conversation:{id} zset rw
-- LIMITS.hop_limit  maximum number of messages in a chain of which each answers the one before, after the first
-- LIMITS.conversation_messages  maximum number of messages of one conversation
local HOP_LIMIT, CONVERSATION_MOST = tonumber(LIMITS.hop_limit), tonumber(LIMITS.conversation_messages)
-- Senders that the reason of a dead letter names, the last ones.
local PATH_MOST = 32

-- Returns what the record of an earlier message says about its conversation; nil if there is none.
local function load_earlier(id)
  if not id or id == '' then
    return nil
  end
  local values = call('HMGET', P .. 'message:' .. id, 'sender_id', 'hops', 'conversation', 'request', 'requested_by',
    'receiver_id')
  if not values[1] then
    return nil
  end
  return { id = id, sender = values[1], hops = tonumber(values[2] or 0) or 0, conversation = values[3] or id,
    request = values[4], caller = values[5] or nil, receiver = values[6] }
end

-- The end of the id of a reply, and the longest id. The id of a longer request is cut off before it.
local REPLY, LONGEST_ID = '.reply', 128

local function reply_id_of(id)
  return string.sub(id, 1, LONGEST_ID - #REPLY) .. REPLY
end

-- Returns why a sender may not use a message id; nil if it may. The reply to a request has the id of the request plus
-- `.reply`, which only the receiver of the request may use: with another message under it, the reply would be lost.
local function reserved(id, sender, reply_to)
  if string.sub(id, -#REPLY) ~= REPLY then
    return nil
  end
  local request = string.sub(id, 1, -#REPLY - 1)
  if #id == LONGEST_ID and reply_to ~= '' and reply_id_of(reply_to) == id then
    request = reply_to
  end
  local receiver, state = unpack(call('HMGET', P .. 'message:' .. request, 'receiver_id', 'request'))
  if state and receiver ~= sender then
    return "message_id '" .. id .. "' is reserved for the reply of '" .. receiver .. "' to a request; use another id"
  end
end

-- Determines the place of a message: `answers` (the message that it answers), `parent` (the id of the one that it
-- follows in its chain), `hops` and `conversation` (nil: it may be the first one of a conversation). All of this comes from the
-- records of earlier messages, so no sender can shorten a chain while it answers.
local function join_conversation(message)
  local answered = load_earlier(message.reply_to)
  local cause = message.caused_by ~= message.reply_to and load_earlier(message.caused_by) or nil
  local parent = answered
  if cause and (not parent or cause.hops > parent.hops) then
    parent = cause
  end
  message.answers = answered
  message.parent = parent and parent.id
  message.hops = parent and parent.hops + 1 or 0
  if answered then
    message.conversation = answered.conversation
  elseif message.correlation_id ~= '' then
    message.conversation = message.correlation_id
  elseif cause then
    message.conversation = cause.conversation
  end
  if message.correlation_id == '' then
    message.correlation_id = message.conversation or ''
  end
  message.place = message.conversation and call('ZCARD', P .. 'conversation:' .. message.conversation)
end

-- Returns the senders of a chain and its last receiver, oldest first, such as "a > b > a".
local function path_of(message)
  local names, id = { message.receiver, message.sender }, message.parent
  while id and #names < PATH_MOST do
    local values = call('HMGET', P .. 'message:' .. id, 'sender_id', 'parent')
    names[#names + 1] = values[1] or '?'
    id = values[1] and values[2]
  end
  if id then
    names[#names + 1] = '...'
  end
  local path = {}
  for i = #names, 1, -1 do
    path[#path + 1] = names[i]
  end
  return table.concat(path, ' > ')
end

-- Returns why a message goes beyond a limit of its conversation: a word, a code and a message; nil if it does not.
local function over_limit(message)
  if message.hops > HOP_LIMIT then
    return 'LOOP', 'hop_limit_reached', 'it is answer ' .. int(message.hops) .. ' in a chain of answers, and COORD_HOP_LIMIT is '
      .. int(HOP_LIMIT) .. '; path: ' .. path_of(message)
  elseif message.place and message.place >= CONVERSATION_MOST then
    return 'OVER_BUDGET', 'conversation_full', "conversation '" .. message.conversation .. "' has " .. int(message.place)
      .. ' messages, and COORD_CONVERSATION_MESSAGES is ' .. int(CONVERSATION_MOST) .. '; path: ' .. path_of(message)
  end
end

-- Adds a message to the index of its conversation, which lives as long as the record of its last message, and has at
-- most so many messages; dead letters beyond that are not listed. The first message of a conversation is added with the
-- second one: most messages have no answer, and no index.
local function index_message(message, ttl, most)
  if not message.conversation or message.place >= most then
    return
  end
  local key, place = P .. 'conversation:' .. message.conversation, message.place
  if place == 0 and message.parent == message.conversation then
    place = place + 1
    call('ZADD', key, place, message.parent)
  end
  call('ZADD', key, place + 1, message.id)
  call('PEXPIRE', key, int(ttl), 'NX')
  call('PEXPIRE', key, int(ttl), 'GT')
end

-- Adds the fields of a message's record that tell its place in a conversation.
local PLACE = { 'correlation_id', 'reply_to', 'reply_by', 'failed', 'late', 'hops', 'traceparent', 'conversation', 'parent',
  'request', 'requested_by' }
local function add_place(fields, message)
  return add_optional(fields, message, PLACE)
end
