-- The end of a message that its receiver has not read: it becomes a dead letter, if no copy of it was read.
-- include: base capped
-- keys: message:{id} hash rw | messages:dead zset rw | copies:{message} hash rw | log:messages stream w
-- Events in log:messages: message.dead

call('ZCARD', P .. 'messages:dead')

-- Ends a message that was taken out of an inbox unread.
--   entry   its entry in the inbox
--   flat    the fields of the entry, names and values
local function end_unread(entry, flat, code, reason)
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  local id, receiver = fields.id, fields.receiver_id or ''
  if not id then
    return
  end
  local key, copies = P .. 'message:' .. id, P .. 'copies:' .. id
  local record = call('HMGET', key, 'status', 'inbox_entry')
  if record[1] == 'delivered' and record[2] == entry then
    call('HSET', key, 'status', 'dead', 'code', code, 'reason', reason)
    call('PERSIST', key)
    call('ZADD', P .. 'messages:dead', NOW, id)
  elseif record[1] and (record[2] or '') == '' then
    -- A message to several agents: this copy ends alone.
    call('HSET', copies, receiver, 'dead ' .. code)
    call('PEXPIRE', copies, math.max(1, call('PTTL', key)))
  end
  bump('messages_dead', 1)
  log('log:messages', 'type', 'message.dead', 'message_id', id, 'sender_id', fields.sender_id or '',
    'receiver_id', receiver, 'code', code, 'reason', reason)
end
