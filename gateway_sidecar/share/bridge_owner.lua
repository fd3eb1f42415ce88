-- Whether the other end of a TCP connection on this machine belongs to nginx's own user.
--
-- One question to the kernel by netlink (sock_diag, linux/inet_diag.h) about one connection: microseconds, however many
-- there are. Anybody may ask it; the answer comes back at once.

local bit = require "bit"
local ffi = require "ffi"
local C = ffi.C

ffi.cdef [[
int socket(int domain, int type, int protocol);
int close(int fd);
long send(int fd, const void *data, size_t size, int flags);
long recv(int fd, void *data, size_t size, int flags);
int inet_pton(int family, const char *text, void *address);
unsigned int geteuid(void);
]]

local AF_INET, AF_INET6, AF_NETLINK = 2, 10, 16
local SOCK_DGRAM, SOCK_CLOEXEC, NETLINK_SOCK_DIAG = 2, 524288, 4
local SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, IPPROTO_TCP = 20, 1, 6
local HEADER, QUESTION, ANSWER = 16, 72, 4096
-- In an answer, after the header: four bytes, the connection's 48, three numbers of four bytes, the user.
local USER_AT = HEADER + 4 + 48 + 12

local owner = {}

local function put16(at, port)
    at[0], at[1] = bit.rshift(port, 8), bit.band(port, 255)
end

local function user_of(here, here_port, there, there_port)
    local family = string.find(here, ":", 1, true) and AF_INET6 or AF_INET
    local asked = ffi.new("uint8_t[?]", QUESTION)
    local words, shorts = ffi.cast("uint32_t *", asked), ffi.cast("uint16_t *", asked)
    words[0], shorts[2], shorts[3] = QUESTION, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST
    asked[HEADER], asked[HEADER + 1] = family, IPPROTO_TCP
    words[5] = 0xffffffff -- in whatever state it is
    put16(asked + 24, here_port)
    put16(asked + 26, there_port)
    if C.inet_pton(family, here, asked + 28) ~= 1 or C.inet_pton(family, there, asked + 44) ~= 1 then return nil end
    words[16], words[17] = 0xffffffff, 0xffffffff -- no cookie
    local fd = C.socket(AF_NETLINK, SOCK_DGRAM + SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    if fd < 0 then return nil end
    local told, user = ffi.new("uint8_t[?]", ANSWER), nil
    if C.send(fd, asked, QUESTION, 0) == QUESTION then
        local size = tonumber(C.recv(fd, told, ANSWER, 0))
        if size >= USER_AT + 4 and ffi.cast("uint16_t *", told)[2] == SOCK_DIAG_BY_FAMILY then
            user = tonumber(ffi.cast("uint32_t *", told + USER_AT)[0])
        end
    end
    C.close(fd)
    return user
end

-- Answers 204 for one's own connection, else 403. The query names it: address and port of its far end, and of ours.
function owner.answer()
    local query = ngx.unescape_uri(ngx.var.args or "")
    local here, here_port, there, there_port = string.match(query, "^(%S+) (%d+) (%S+) (%d+)$")
    local user = here and user_of(here, tonumber(here_port), there, tonumber(there_port))
    return ngx.exit(user == C.geteuid() and 204 or 403)
end

return owner
