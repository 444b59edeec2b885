#!lua flags=allow-oom
-- Changes live settings, which distributors follow while they run, or resets them to the distributors' environment.
-- include: base
-- keys: settings hash w | log:control stream w | in:control:{kind} stream w
-- ARGV[3]  number of settings, then for each:
--   entry | caller or '' | name | value, or '' to reset
-- Returns {words}. Words: OK; GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:control: setting.changed
local STREAM = 'in:control:distributor'

local function configure(i)
  local entry, caller, name, value = unpack(ARGV, i, i + 3)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  if value ~= '' then
    call('HSET', P .. 'settings', name, value)
  else
    call('HDEL', P .. 'settings', name)
  end
  log('log:control', 'type', 'setting.changed', 'name', name, 'value', value, 'caller', caller)
  answer(caller, STREAM, entry)
  return 'OK'
end

return run_batch({ group = 'distributor', stream = STREAM, at = 3, width = 4, handle = configure })
