-- Lanes of messages. One router at a time delivers the messages of a lane, the oldest first: it holds the lease of the lane.
-- include: base entries
-- keys: lanes hash r | in:messages:{lane} stream r
-- LIMITS.lease_{lane}  the lease of the lane under which the router delivers; none: it does not hold the lane
-- A router that stood still while another one took its lane has an old lease. Its batch changes nothing. An entry that is
-- not the first one of its lane has to wait: the entries before it were read by a router that no longer holds the lane,
-- or have failed.
local lane_refusals = {}

-- Returns why an entry of a lane is not handled now: NOT_HELD (the router does not hold the lane), GONE (the entry was
-- handled before), BEHIND (an older entry waits); nil if it is handled.
local function lane_refusal(lane, entry)
  local refusal = lane_refusals[lane]
  if refusal == nil then
    local lease = LIMITS['lease_' .. lane]
    if not lease or call('HGET', P .. 'lanes', lane) ~= lease then
      refusal = 'NOT_HELD'
      lane_refusals[lane] = refusal
    end
  end
  if refusal then
    return refusal
  elseif not is_present('in:messages:' .. lane, entry) then
    return 'GONE'
  elseif refusal == nil then
    local first = call('XRANGE', P .. 'in:messages:' .. lane, '-', '+', 'COUNT', 1)[1]
    refusal = first[1] ~= entry and 'BEHIND' or false
    lane_refusals[lane] = refusal
  end
  return refusal or nil
end
