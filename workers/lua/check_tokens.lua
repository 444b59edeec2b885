#!lua flags=allow-oom
-- Checks the tokens of agents' facts before anything handles them, and refuses the facts whose token is missing or
-- wrong: these are consumed, answered and counted, and change nothing. The others stay in their streams.
-- include: base entries replies batches
-- keys: token:{id} hash r | agent:{id} hash r
-- ARGV[3]  the consumer group
-- ARGV[4]  number of facts, then for each:
--   entry | stream, without namespace | answer_to: who gets a refusal, or '' | agent_id: who speaks | digest: SHA-256 of the token, or '' |
--   may_be_client: 1 if the fact need not be an agent's
-- Returns {words}. Words: OK; MISSING, INVALID (refused); GONE (refused before); ERROR <why> (not consumed)
-- Events: none in a log; the counter tokens_refused has their number

-- Returns why a fact is refused: a word, a code and a message. Returns nil if its token is valid.
local function refusal(id, digest, may_be_client)
  local current, previous, previous_until = unpack(call('HMGET', P .. 'token:' .. id, 'current', 'previous', 'previous_until'))
  if digest ~= '' and (digest == current or (digest == previous and now < tonumber(previous_until or 0))) then
    return nil
  end
  if may_be_client and call('EXISTS', P .. 'token:' .. id) == 0 and call('EXISTS', P .. 'agent:' .. id) == 0 then
    return nil
  end
  if not current then
    return 'INVALID', 'token_invalid', "agent '" .. id .. "' has no token: an operator gives it one with coord agents enrol"
  elseif digest == '' then
    return 'MISSING', 'token_missing', "agent '" .. id .. "' must send its token: set COORD_AGENT_TOKEN or COORD_AGENT_TOKEN_FILE"
  end
  return 'INVALID', 'token_invalid', "this is not the token of agent '" .. id .. "', or not any more: an operator can rotate it"
end

local function check(i)
  local entry, stream, answer_to, id, digest, may_be_client = unpack(ARGV, i, i + 5)
  local word, code, message = refusal(id, digest, may_be_client == '1')
  if not word then
    return 'OK'
  elseif not is_present(stream, entry) then
    return 'GONE'
  end
  bump('tokens_refused', 1)
  answer(answer_to, stream, entry, code, message)
  return word
end

return run_batch({
  group = ARGV[3], at = 4, width = 6, handle = check, defers = { OK = true },
  stream = function(i)
    return ARGV[i + 1]
  end,
})
