#!lua flags=allow-oom
-- Sets what distributors obey while they run, or gives it back to their environment.
-- include: base
-- keys: settings hash w | log:control stream w | in:control:{kind} stream w
-- ARGV[5] number of settings, then for each: entry id | caller or '' | name | 1: set, 0: given back | value
-- Returns {words}. Words: OK; GONE (its entry was handled before); ERROR <why> (not consumed)
-- Events in log:control: setting.changed
local STREAM = 'in:control:distributor'

local function configure(i)
  local entry, caller, name, is_set, value = unpack(ARGV, i, i + 4)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  if is_set == '1' then
    call('HSET', P .. 'settings', name, value)
  else
    call('HDEL', P .. 'settings', name)
  end
  log('log:control', 'type', 'setting.changed', 'name', name, 'value', value, 'caller', caller)
  answer(caller, STREAM, entry)
  return 'OK'
end

local words, done = {}, {}
for i = 6, 5 + tonumber(ARGV[5]) * 5, 5 do
  local word, failed = guarded(configure, i)
  words[#words + 1] = word
  if not failed then
    done[#done + 1] = ARGV[i]
  end
end
finish()
consume(STREAM, 'distributor', done)
return { words }
