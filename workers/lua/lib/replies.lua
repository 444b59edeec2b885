-- Replies to those who append facts: answers, and outcomes of tasks.
-- include: base capped
-- keys: replies:{caller} stream w
-- LIMITS.replies_entries  entries kept of each replies stream (MAXLEN ~)
-- LIMITS.replies_bytes  bytes kept of it
-- LIMITS.reply_data_bytes  bytes of an outcome's data that a reply carries
-- Appends an entry to the caller's replies. The key is built here, never taken from outside. A reply follows the change
-- that it reports, and is a hint where the record is the truth: a failed write must not undo the change.
local repliers = {}
local function reply(caller, ...)
  repliers[caller] = true
  append_capped('replies:' .. caller, LIMITS.replies_bytes, LIMITS.replies_entries, ...)
end

-- Sends the outcome of a task to its caller. Large data stays in the record only: the reply says that it is there.
local function reply_outcome(caller, id, state, data)
  if data and #data <= tonumber(LIMITS.reply_data_bytes) then
    reply(caller, 'type', 'task.' .. state, 'task_id', id, 'data', data)
  else
    reply(caller, 'type', 'task.' .. state, 'task_id', id, 'at', 'record')
  end
end

-- Answers one fact, which its stream and its entry id identify together: ok, or an error's code and message. The ok
-- answers of a batch to one caller are sent together, one entry for each stream.
local accepted = {}
local function answer(caller, stream, fact, code, message, ...)
  if caller == '' then
    return
  end
  if code then
    reply(caller, 'type', 'fact.answered', 'stream', stream, 'fact', fact, 'ok', '0', 'code', code, 'message', message, ...)
    return
  end
  local of_stream = accepted[stream]
  if not of_stream then
    of_stream = {}
    accepted[stream] = of_stream
  end
  local facts = of_stream[caller]
  if not facts then
    facts = {}
    of_stream[caller] = facts
  end
  facts[#facts + 1] = fact
end

-- Answers ok with data: JSON.
local function answer_with(caller, stream, fact, data)
  if caller ~= '' then
    reply(caller, 'type', 'fact.answered', 'stream', stream, 'fact', fact, 'ok', '1', 'data', data)
  end
end
