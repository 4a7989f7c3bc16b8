// One small function per endpoint, found through a table. A handler that takes long writes progress lines as it goes;
// the last line of such a reply is {"result":...} or, added by the connection, {"error":...}.

#include "daemon/handlers.h"

#include "daemon/explain.h"
#include "daemon/log.h"
#include "store/printable.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>

namespace lamina::daemon {

namespace json = boost::json;
using store::Errc;
using store::Error;

namespace {

constexpr auto kProgressPause = std::chrono::milliseconds(100);
constexpr std::string_view kJson = "application/json";
constexpr std::string_view kLines = "application/x-ndjson";
constexpr std::string_view kBytes = "application/octet-stream";

std::string line_of(std::string_view wrapper, json::value value) {
    return json::serialize(json::object{{wrapper, std::move(value)}}) + "\n";
}

api::Image image_of(const store::ImageSummary& summary) {
    api::Image image;
    image.names = summary.names;
    image.id = summary.config.digest.text();
    image.manifest_digest = summary.manifest.digest.text();
    image.tree_digest = summary.tree.digest.text();
    for (const store::DiffId& layer : summary.layers) image.layers.push_back(layer.digest.text());
    image.platform = summary.platform.text();
    image.created = summary.created;
    image.imported_at = summary.imported_at;
    image.used_at = summary.used_at;
    image.pinned = summary.is_pinned;
    image.logical_bytes = summary.logical_bytes;
    image.inode_count = summary.inode_count;
    image.lazy = summary.is_lazy;
    image.state = state_name(summary.state);
    image.quarantine = summary.quarantine;
    return image;
}

std::string type_name(store::FileType type) {
    switch (type) {
        case store::FileType::regular:
            return "file";
        case store::FileType::directory:
            return "directory";
        case store::FileType::symlink:
            return "symlink";
        case store::FileType::char_device:
            return "char";
        case store::FileType::block_device:
            return "block";
        case store::FileType::fifo:
            return "fifo";
        case store::FileType::socket:
            return "socket";
    }
    return "file";
}

api::ListedName listed_of(const store::ListedName& entry) {
    const store::TreeAttributes& from = entry.attributes;
    return {.path = entry.path,
            .type = type_name(from.type),
            .mode = from.mode,
            .uid = from.uid,
            .gid = from.gid,
            .nlink = from.nlink,
            .inode = entry.ino,
            .size_bytes = from.size_bytes,
            .mtime_seconds = from.mtime.seconds,
            .mtime_nanoseconds = from.mtime.nanoseconds,
            .device_major = from.device_major,
            .device_minor = from.device_minor,
            .link_target = entry.link_target};
}

json::value document(const std::string& text) {
    json::error_code error;
    json::value value = json::parse(text, error);
    return error ? json::value(text) : value;
}

/// Progress events, but no more than a person can see.
store::ProgressFunction progress_to(ReplyChannel& out) {
    auto last = std::make_shared<std::chrono::steady_clock::time_point>();
    return [&out, last](const store::Progress& progress) {
        const auto now = std::chrono::steady_clock::now();
        if (now - *last < kProgressPause) return;
        *last = now;
        const api::Progress event{progress.phase,           progress.item,
                                  progress.done_bytes,      progress.total_bytes,
                                  progress.item_done_bytes, progress.item_total_bytes};
        out.push(line_of("progress", json::value_from(event)));
    };
}

store::RegistryAccess access_of(const api::RegistryAccess& from) {
    store::RegistryAccess access{.credentials = std::nullopt,
                                 .auth_file = from.authfile,
                                 .cert_dir = from.cert_dir,
                                 .verifies_tls = from.tls_verify,
                                 .proxy = {from.http_proxy, from.https_proxy, from.no_proxy}};
    if (!from.credentials.empty()) access.credentials = store::Credentials::parse(from.credentials);
    const bool has_proxy = !from.http_proxy.empty() || !from.https_proxy.empty() || !from.no_proxy.empty();
    if (!has_proxy) access.proxy = store::ProxySettings::from_environment();
    return access;
}

class ChannelSink : public store::ByteSink {
public:
    explicit ChannelSink(ReplyChannel& out) : out_(out) {}
    void write(std::span<const std::byte> data) override {
        out_.push(std::string(reinterpret_cast<const char*>(data.data()), data.size()));
    }

private:
    ReplyChannel& out_;
};

}  // namespace

struct Handlers::Call {
    const Handlers& self;
    const ApiRequest& request;
    ReplyChannel& out;
    std::stop_token stop;

    std::string parameter(const std::string& key) const {
        const auto found = request.query.find(key);
        return found == request.query.end() ? std::string() : found->second;
    }
    std::string required(const std::string& key) const {
        std::string value = parameter(key);
        if (value.empty()) throw api::FailureError({"usage", "the request lacks the parameter \"" + key + "\""});
        return value;
    }
    bool flag(const std::string& key) const { return parameter(key) == "true"; }
    template <class T>
    void reply(const T& message) const {
        out.push(api::to_text(message) + "\n");
    }
    /// After what may have made the store larger.
    void keep_size(const std::vector<store::ImageSummary>& brought) const {
        for (const std::string& line : self.daemon_.size_limit->keep(brought, stop)) {
            out.push(line_of("notice", json::value_from(api::Notice{line})));
        }
    }
    template <class T>
    void result(const T& message) const {
        out.push(line_of("result", json::value_from(message)));
    }
};

struct Handlers::Endpoint {
    std::string_view method;
    std::string_view path;
    std::string_view content_type;
    void (*run)(const Call& call);

    static void ping(const Call& call) { call.reply(call.self.daemon_.ping); }

    static void stop(const Call& call) {
        call.out.push("{}\n");
        call.self.daemon_.stop();
    }

    static void images(const Call& call) {
        api::Images reply;
        for (const store::ImageSummary& image : call.self.store_.images()) reply.images.push_back(image_of(image));
        call.reply(reply);
    }

    static void inspect(const Call& call) {
        const store::ImageDetails details = call.self.store_.inspect(call.required("image"));
        api::ImageDetails reply;
        reply.image = image_of(details.summary);
        for (const auto& layer : details.layers) {
            reply.layers.push_back({layer.diff_id.digest.text(), layer.tar_bytes, layer.entry_count});
        }
        reply.manifest = document(details.manifest_json);
        reply.config = document(details.config_json);
        call.reply(reply);
    }

    static void remove_image(const Call& call) {
        call.self.store_.remove_image(call.required("image"), call.flag("force"));
        call.out.push("{}\n");
    }

    static void tag(const Call& call) {
        const auto request = api::parse_request<api::TagRequest>(call.request.body);
        call.self.store_.tag(request.image, store::ImageName::parse(request.name));
        call.out.push("{}\n");
    }

    static void pin(const Call& call) {
        call.self.store_.set_pinned(api::parse_request<api::PinRequest>(call.request.body).image, true);
        call.out.push("{}\n");
    }

    static void unpin(const Call& call) {
        call.self.store_.set_pinned(call.required("image"), false);
        call.out.push("{}\n");
    }

    static void list(const Call& call) {
        api::Listing reply;
        const std::string path = call.parameter("path");
        for (const auto& entry : call.self.store_.list(call.required("image"), path.empty() ? "/" : path)) {
            reply.entries.push_back(listed_of(entry));
        }
        call.reply(reply);
    }

    static void file(const Call& call) {
        ChannelSink sink(call.out);
        call.self.store_.read_file(call.required("image"), call.required("path"), sink);
    }

    static void import(const Call& call) {
        const auto request = api::parse_request<api::ImportRequest>(call.request.body);
        store::ImportRequest import;
        import.source = request.source;
        if (!request.name.empty()) import.name = store::ImageName::parse(request.name);
        if (!request.platform.empty()) import.platform = store::oci::Platform::parse(request.platform);
        import.progress = progress_to(call.out);
        const std::vector<store::ImageSummary> images = call.self.store_.import(import, call.stop);
        call.keep_size(images);
        api::Images imported;
        for (const auto& image : images) imported.images.push_back(image_of(image));
        call.result(imported);
    }

    static void pull(const Call& call) {
        const auto request = api::parse_request<api::PullRequest>(call.request.body);
        store::PullRequest pull;
        pull.reference = request.image;
        if (!request.name.empty()) pull.name = store::ImageName::parse(request.name);
        if (!request.platform.empty()) pull.platform = store::oci::Platform::parse(request.platform);
        if (request.lazy == "always") {
            pull.lazy = store::PullRequest::Lazy::always;
        } else if (request.lazy == "auto") {
            pull.lazy = store::PullRequest::Lazy::automatic;
        } else if (!request.lazy.empty() && request.lazy != "never") {
            throw api::FailureError({"usage", "lazy \"" + request.lazy + "\" is neither never, auto nor always"});
        }
        pull.access = access_of(request.access);
        pull.progress = progress_to(call.out);
        pull.note = [](const std::string& line) { log::warning(line); };
        const store::ImageSummary image = call.self.store_.pull(pull, call.stop);
        call.keep_size({image});
        call.result(image_of(image));
    }

    static void complete(const Call& call) {
        const auto request = api::parse_request<api::CompleteRequest>(call.request.body);
        const store::Completion completion{
            .is_background = true, .bytes_per_second = request.bytes_per_second, .progress = progress_to(call.out)};
        call.result(image_of(call.self.store_.complete({request.image, completion}, call.stop)));
    }

    static void push(const Call& call) {
        const auto request = api::parse_request<api::PushRequest>(call.request.body);
        store::PushRequest push;
        push.image = request.image;
        push.target = request.target;
        if (request.compression == "zstd") {
            push.compression = store::Compression::zstd;
        } else if (!request.compression.empty() && request.compression != "gzip") {
            throw api::FailureError({"usage", "compression \"" + request.compression + "\" is neither gzip nor zstd"});
        }
        push.publishes_index = request.index;
        push.access = access_of(request.access);
        push.progress = progress_to(call.out);
        if (push.publishes_index) call.self.mounts_.note_reads();
        const store::PushReport report = call.self.store_.push(push, call.stop);
        call.result(api::PushResult{report.reference, report.manifest.digest.text(), report.layers_there,
                                    report.layers_mounted, report.layers_sent, report.sent_bytes});
    }

    static void fetch(const Call& call) {
        const auto request = api::parse_request<api::FetchRequest>(call.request.body);
        const BackgroundCompletion::Reading reading(*call.self.daemon_.completion);
        const auto bytes = call.self.store_.fetch_chunk(
            {request.mount, {store::Digest::parse(request.chunk)}, request.bytes}, call.stop);
        ChannelSink(call.out).write(bytes);
    }

    static void save(const Call& call) {
        const auto request = api::parse_request<api::SaveRequest>(call.request.body);
        call.self.store_.save({request.image, request.target, progress_to(call.out)}, call.stop);
        call.result(json::object{{"target", request.target}});
    }

    static void commit(const Call& call) {
        const auto request = api::parse_request<api::CommitRequest>(call.request.body);
        const store::ImageSummary image = call.self.mounts_.commit(request, progress_to(call.out), call.stop);
        call.keep_size({image});
        call.result(image_of(image));
    }

    static void usage(const Call& call) {
        const store::DiskUsage usage = call.self.store_.disk_usage();
        api::Usage reply{.logical_bytes = usage.logical_bytes,
                         .tar_bytes = usage.tar_bytes,
                         .pack_bytes = usage.pack_bytes,
                         .index_bytes = usage.index_bytes,
                         .recipe_bytes = usage.recipe_bytes,
                         .tree_bytes = usage.tree_bytes,
                         .mount_bytes = usage.mount_bytes,
                         .other_bytes = usage.other_bytes,
                         .reclaimable_bytes = usage.reclaimable_bytes,
                         .max_bytes = call.self.daemon_.size_limit->max_bytes(),
                         .images = {},
                         .shares = {}};
        for (const auto& share : usage.shares) reply.shares.push_back({share.images, share.stored_bytes});
        for (const auto& image : usage.images) {
            reply.images.push_back(
                {image.name, image.config.digest.text(), image.logical_bytes, image.stored_bytes, image.unique_bytes});
        }
        call.reply(reply);
    }

    /// A mount, by name, ID or mount point, goes before an image of that name.
    static void explain(const Call& call) {
        const std::string of = call.required("of");
        store::ExplainRequest request{.image = of, .mount_id = {}, .path = call.parameter("path"), .read_chunks = {}};
        if (const auto mount = call.self.mounts_.find_if(of)) {
            request.mount_id = mount->id;
            if (const auto reads = call.self.mounts_.reads(*mount))
                request.read_chunks.emplace(reads->chunks.begin(), reads->chunks.end());
        }
        try {
            call.reply(explanation_of(call.self.store_.explain(request, call.stop)));
        } catch (const Error& error) {  // What is no image may have been meant as a mount.
            const bool is_unknown = error.code() == Errc::not_found || error.code() == Errc::malformed;
            if (!is_unknown || !request.mount_id.empty() || !request.path.empty()) throw;
            throw store::with_context(error, "no mount " + store::quote(of));
        }
    }

    static void gc(const Call& call) {
        const auto request = api::parse_request<api::GcRequest>(call.request.body);
        const store::GcReport report =
            call.self.store_.gc({.is_dry_run = request.dry_run, .idle_mounts = call.self.mounts_.idle()}, call.stop);
        call.result(api::GcResult{.dry_run = report.is_dry_run,
                                  .freed_bytes = report.freed_bytes,
                                  .images_removed = report.images_removed,
                                  .packs_removed = report.packs_removed,
                                  .packs_rewritten = report.packs_rewritten,
                                  .layers_removed = report.layers_removed,
                                  .trees_removed = report.trees_removed,
                                  .packs_waiting = report.packs_waiting});
    }

    static void verify(const Call& call) {
        const auto request = api::parse_request<api::VerifyRequest>(call.request.body);
        store::RepairReport report;
        if (request.repair) {
            report =
                call.self.store_.repair({.sources = request.sources, .progress = progress_to(call.out)}, call.stop);
        } else {
            report.left = call.self.store_.verify(request.data, progress_to(call.out), call.stop);
        }
        const store::VerifyReport& left = report.left;
        call.result(api::VerifyResult{left.chunks_checked, left.bytes_checked, report.done, left.problems});
    }

    static void upkeep(const Call& call) {
        const auto request = api::parse_request<api::UpkeepRequest>(call.request.body);
        const store::UpkeepReport report = call.self.store_.upkeep(
            {.bytes_per_second = request.bytes_per_second, .scrubs = request.scrub, .progress = progress_to(call.out)},
            call.stop);
        call.keep_size({});
        call.result(api::UpkeepResult{.compressed_bytes = report.compressed_bytes,
                                      .freed_bytes = report.freed_bytes,
                                      .packs_written = report.packs_written,
                                      .packs_removed = report.packs_removed,
                                      .read_bytes = report.read_bytes,
                                      .problems = report.problems});
    }

    static void mounts(const Call& call) { call.reply(api::Mounts{call.self.mounts_.list()}); }

    static void mount(const Call& call) {
        call.reply(call.self.mounts_.create(api::parse_request<api::MountRequest>(call.request.body)));
        call.self.daemon_.completion->look();
    }

    static void unmount(const Call& call) {
        call.self.mounts_.unmount(call.required("mount"), call.flag("discard"));
        call.out.push("{}\n");
    }

    static void quota(const Call& call) { call.reply(call.self.mounts_.quota(call.required("mount"), std::nullopt)); }

    static void set_quota(const Call& call) {
        const auto request = api::parse_request<api::QuotaRequest>(call.request.body);
        call.reply(call.self.mounts_.quota(request.mount, request));
    }

    static void upgrade(const Call& call) {
        call.reply(api::MountUpgrades{call.self.mounts_.upgrade(call.parameter("mount"), call.stop)});
    }

    static void changes(const Call& call) {
        call.self.mounts_.changes(
            call.required("mount"), [&](std::string_view lines) { call.out.push(std::string(lines)); }, call.stop);
        call.result(json::object{});
    }
};

const Handlers::Endpoint* Handlers::find(const ApiRequest& request) {
    static constexpr std::array kEndpoints{
        Endpoint{"GET", api::path::kPing, kJson, Endpoint::ping},
        Endpoint{"POST", api::path::kStop, kJson, Endpoint::stop},
        Endpoint{"GET", api::path::kImages, kJson, Endpoint::images},
        Endpoint{"GET", api::path::kImage, kJson, Endpoint::inspect},
        Endpoint{"DELETE", api::path::kImage, kJson, Endpoint::remove_image},
        Endpoint{"POST", api::path::kTag, kJson, Endpoint::tag},
        Endpoint{"POST", api::path::kPin, kJson, Endpoint::pin},
        Endpoint{"DELETE", api::path::kPin, kJson, Endpoint::unpin},
        Endpoint{"GET", api::path::kImageList, kJson, Endpoint::list},
        Endpoint{"GET", api::path::kImageFile, kBytes, Endpoint::file},
        Endpoint{"POST", api::path::kImport, kLines, Endpoint::import},
        Endpoint{"POST", api::path::kSave, kLines, Endpoint::save},
        Endpoint{"POST", api::path::kPull, kLines, Endpoint::pull},
        Endpoint{"POST", api::path::kPush, kLines, Endpoint::push},
        Endpoint{"POST", api::path::kComplete, kLines, Endpoint::complete},
        Endpoint{"POST", api::path::kFetch, kBytes, Endpoint::fetch},
        Endpoint{"POST", api::path::kCommit, kLines, Endpoint::commit},
        Endpoint{"GET", api::path::kExplain, kJson, Endpoint::explain},
        Endpoint{"GET", api::path::kUsage, kJson, Endpoint::usage},
        Endpoint{"POST", api::path::kGc, kLines, Endpoint::gc},
        Endpoint{"POST", api::path::kVerify, kLines, Endpoint::verify},
        Endpoint{"POST", api::path::kUpkeep, kLines, Endpoint::upkeep},
        Endpoint{"GET", api::path::kMounts, kJson, Endpoint::mounts},
        Endpoint{"POST", api::path::kMounts, kJson, Endpoint::mount},
        Endpoint{"DELETE", api::path::kMounts, kJson, Endpoint::unmount},
        Endpoint{"POST", api::path::kMountUpgrade, kJson, Endpoint::upgrade},
        Endpoint{"GET", api::path::kMountChanges, kLines, Endpoint::changes},
        Endpoint{"GET", api::path::kMountQuota, kJson, Endpoint::quota},
        Endpoint{"POST", api::path::kMountQuota, kJson, Endpoint::set_quota},
    };
    const auto found = std::find_if(kEndpoints.begin(), kEndpoints.end(), [&](const Endpoint& endpoint) {
        return endpoint.method == request.method && endpoint.path == request.path;
    });
    return found == kEndpoints.end() ? nullptr : found;
}

Handlers::Handlers(store::Store& store, Mounts& mounts, Daemon daemon)
    : store_(store), mounts_(mounts), daemon_(std::move(daemon)) {}

void Handlers::call(const ApiRequest& request, ReplyChannel& out, std::stop_token stop) const {
    const Endpoint* const endpoint = find(request);
    if (!endpoint) {
        throw api::FailureError({"not_found", "no endpoint " + request.method + " " + request.path});
    }
    std::optional<IdleUpkeep::Work> work;  // Who only looks, now and again, must not keep it from beginning.
    if (endpoint->method != "GET" || endpoint->content_type != kJson) work.emplace(*daemon_.upkeep);
    endpoint->run(Call{*this, request, out, std::move(stop)});
}

std::string_view Handlers::content_type(const ApiRequest& request) {
    const Endpoint* const endpoint = find(request);
    return endpoint ? endpoint->content_type : kJson;
}

api::Failure failure_of(const Error& error) {
    return {std::string(store::errc_name(error.code())), error.what()};
}

unsigned http_status_of(const api::Failure& failure) {
    struct Row {
        std::string_view code;
        unsigned status;
    };
    static constexpr std::array kRows{Row{"usage", 400},      Row{"malformed", 400},      Row{"not_found", 404},
                                      Row{"busy", 409},       Row{"already_exists", 409}, Row{"read_only", 403},
                                      Row{"denied", 403},     Row{"no_space", 507},       Row{"quota", 507},
                                      Row{"cancelled", 503},  Row{"unavailable", 503},    Row{"timed_out", 504},
                                      Row{"unsupported", 501}};
    for (const Row& row : kRows) {
        if (row.code == failure.code) return row.status;
    }
    return 500;
}

}  // namespace lamina::daemon
