-- An engine's queue of connections is full: nginx waits and tries again, before a router hears of it.
--
-- Linux refuses a connection to a Unix socket at once then, with EAGAIN, where it would wait over TCP. Each wait is
-- twice as long as the one before, and takes a part of it at random: so of many requests some try at each moment, and
-- not all of them together.

local MOST_TRIES = 8 -- five seconds; nginx leads a request on ten times at the most
local FIRST_S = 0.02

local full_queue = {}

-- Whether nobody listens there: then another engine is to be asked, at once.
local function is_refused(socket)
    local touch = ngx.socket.tcp()
    local connected, reason = touch:connect("unix:" .. socket)
    if connected then touch:close() end
    return not connected and reason ~= "resource temporarily unavailable"
end

-- Returns when the engine is to be tried again; else the request ends.
function full_queue.wait()
    local connected = ngx.var.upstream_connect_time
    local tries = select(2, string.gsub(connected, "-", ""))
    if string.sub(connected, -1) ~= "-" or tries > MOST_TRIES or is_refused(ngx.var.gateway_socket) then
        return ngx.exec("@gone")
    end
    ngx.sleep(FIRST_S * 2 ^ (tries - 1) * (0.5 + math.random()))
end

return full_queue
