#pragma once

#include "client/api.h"
#include "daemon/background_completion.h"
#include "daemon/idle_upkeep.h"
#include "daemon/mounts.h"
#include "daemon/reply_channel.h"
#include "daemon/size_limit.h"
#include "store/error.h"
#include "store/store.h"

#include <map>
#include <stop_token>
#include <string>
#include <string_view>

namespace lamina::daemon {

struct ApiRequest {
    std::string method;  ///< "GET", "POST", "DELETE"
    std::string path;
    std::map<std::string, std::string> query;
    std::string body;
};

api::Failure failure_of(const store::Error& error);
unsigned http_status_of(const api::Failure& failure);

/// What each endpoint does (client/API.md). Thread-safe; calls block, so they run on the pool.
class Handlers {
public:
    struct Daemon {
        api::Ping ping;
        std::function<void()> stop;  ///< Asks the daemon to end; returns at once.
        IdleUpkeep* upkeep;          ///< Stands back for every request that changes something or reads much.
        const SizeLimit* size_limit;
        BackgroundCompletion* completion;
    };
    Handlers(store::Store& store, Mounts& mounts, Daemon daemon);

    /// Runs one request and writes its reply's body to `out`, all but finish(). Throws store::Error, api::FailureError.
    void call(const ApiRequest& request, ReplyChannel& out, std::stop_token stop) const;
    /// The media type of a good reply to this request.
    static std::string_view content_type(const ApiRequest& request);

private:
    struct Call;
    struct Endpoint;
    static const Endpoint* find(const ApiRequest& request);
    store::Store& store_;
    Mounts& mounts_;
    Daemon daemon_;
};

}  // namespace lamina::daemon
