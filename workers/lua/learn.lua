#!lua
-- Shares what a distributor has learned of the agents with the other distributors.
-- include: base
-- keys: log:learned stream w
-- ARGV[3]  the process that learned it: it skips its own entries
-- ARGV[4]  what it learned, opaque JSON
-- Returns {words}. Word: OK
-- Events in log:learned: agents.learned
log('log:learned', 'type', 'agents.learned', 'by', ARGV[3], 'data', ARGV[4])
return finish_words({ 'OK' })
