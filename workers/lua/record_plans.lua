#!lua
-- Appends what a distributor has recorded of its plans to log:plans. A server that is nearly full refuses it.
-- include: capped batches
-- keys: log:plans stream w
-- ARGV[3]  version of the format
-- ARGV[4]  the process that recorded it
-- ARGV[5]  number of entries, then for each:
--   segment | number in the segment | data, opaque JSON
-- Returns {words}, OK
-- Events in log:plans: plans.recorded
local version, by = ARGV[3], ARGV[4]
for n = 1, tonumber(ARGV[5]) do
  local segment, number, data = unpack(ARGV, 3 * n + 3, 3 * n + 5)
  log('log:plans', 'type', 'plans.recorded', 'version', version, 'by', by, 'segment', segment, 'number', number,
    'data', data)
end
return finish_words({ 'OK' })
