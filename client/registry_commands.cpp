// pull, complete, push: what deals with registries.

#include "client/commands.h"
#include "client/output.h"

#include <fmt/format.h>

#include <cstdlib>
#include <memory>

namespace lamina::client {

namespace json = boost::json;

namespace {

struct RegistryArguments {
    std::string image, target, name, platform, compression;
    std::string lazy;
    bool publishes_index = false;
    std::string credentials, authfile, cert_dir, tls_verify = "true";
};
using Arguments = std::shared_ptr<RegistryArguments>;

std::string environment(const char* lower, const char* upper) {
    const char* value = std::getenv(lower);
    if (!value && upper) value = std::getenv(upper);
    return value ? value : "";
}

void add_access_options(CLI::App& command, const Arguments& args) {
    command.add_option("--creds", args->credentials, "USER:PASSWORD for the registry");
    command.add_option("--authfile", args->authfile, "File of credentials (also $REGISTRY_AUTH_FILE)");
    command.add_option("--cert-dir", args->cert_dir, "Folder of certificates: *.crt, *.cert and *.key");
    command
        .add_option("--tls-verify", args->tls_verify, "false: any certificate, and plain HTTP where there is no TLS")
        ->check(CLI::IsMember({"true", "false"}));
}

/// What this process's user and environment say, for the daemon, which may have been started with others.
api::RegistryAccess access_of(const RegistryArguments& args) {
    api::RegistryAccess access;
    access.credentials = args.credentials;
    const std::string authfile = args.authfile.empty() ? environment("REGISTRY_AUTH_FILE", nullptr) : args.authfile;
    if (!authfile.empty()) access.authfile = absolute_path(authfile);
    if (!args.cert_dir.empty()) access.cert_dir = absolute_path(args.cert_dir);
    access.tls_verify = args.tls_verify != "false";
    access.http_proxy = environment("http_proxy", nullptr);
    access.https_proxy = environment("https_proxy", "HTTPS_PROXY");
    access.no_proxy = environment("no_proxy", "NO_PROXY");
    return access;
}

void add_pull(const CommandContext& context) {
    const auto args = std::make_shared<RegistryArguments>();
    CLI::App* const command = context.app.add_subcommand("pull", "Get an image from a registry");
    command->add_option("REF", args->image, "[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]")->required();
    command->add_option("--name", args->name, "Name in the store, instead of REF");
    command->add_option("--platform", args->platform, "Which image of an image index, as os/architecture[/variant]");
    command->add_option("--lazy", args->lazy, "Layers only when they are read: never (default), auto or always")
        ->check(CLI::IsMember({"never", "auto", "always"}));
    add_access_options(*command, args);
    command->callback([context, args] {
        context.run = [&globals = context.globals, args] {
            Connection connection = globals.connect();
            const api::PullRequest request{args->image, args->name, args->platform, args->lazy, access_of(*args)};
            const json::value result = post_with_progress(connection, api::path::kPull, api::to_text(request));
            if (globals.json) return print_json(result);
            const auto image = api::parse_reply<api::Image>(result);
            const std::string name = image.names.empty() ? "<none>" : image.names.front();
            print_text(fmt::format("{}  {}\n", short_digest(image.id), printable(name)));
        };
    });
}

void add_complete(const CommandContext& context) {
    const auto request = std::make_shared<api::CompleteRequest>();
    CLI::App* const command =
        context.app.add_subcommand("complete", "Fetch what is missing of a lazy image, and verify it");
    command->add_option("IMAGE", request->image, "Name or ID of the image")->required();
    command->add_option("--rate", request->bytes_per_second, "At most so many bytes a second (k, M, G); 0: no limit")
        ->transform(CLI::AsSizeValue(false));
    command->callback([context, request] {
        context.run = [&globals = context.globals, request] {
            Connection connection = globals.connect();
            const json::value result = post_with_progress(connection, api::path::kComplete, api::to_text(*request));
            if (globals.json) return print_json(result);
            const auto image = api::parse_reply<api::Image>(result);
            print_text(fmt::format("{}  {}\n", short_digest(image.id), image.state));
        };
    });
}

void add_push(const CommandContext& context) {
    const auto args = std::make_shared<RegistryArguments>();
    CLI::App* const command = context.app.add_subcommand("push", "Send an image to a registry");
    command->add_option("IMAGE", args->image, "Name or ID of the image")->required();
    command->add_option("REF", args->target, "[HOST[:PORT]/]REPOSITORY[:TAG]; without it, IMAGE's own name");
    command->add_option("--compression", args->compression, "Of layers that must be sent: gzip (default) or zstd")
        ->check(CLI::IsMember({"gzip", "zstd"}));
    command->add_flag("--index", args->publishes_index, "Publish beside the image what pull --lazy needs");
    add_access_options(*command, args);
    command->callback([context, args] {
        context.run = [&globals = context.globals, args] {
            Connection connection = globals.connect();
            const api::PushRequest request{args->image, args->target, args->compression, args->publishes_index,
                                           access_of(*args)};
            const json::value result = post_with_progress(connection, api::path::kPush, api::to_text(request));
            if (globals.json) return print_json(result);
            const auto pushed = api::parse_reply<api::PushResult>(result);
            print_text(fmt::format("{}  {}\n", pushed.manifest_digest, printable(pushed.reference)));
        };
    });
}

}  // namespace

void add_registry_commands(const CommandContext& context) {
    add_pull(context);
    add_complete(context);
    add_push(context);
}

}  // namespace lamina::client
