// uWebSockets as a contestant: /fanout sends each message to everybody, any other path sends it back.
// Built against a checkout of uWebSockets by bench/peers/install. Usage: uws PORT
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "App.h"

namespace {

struct Nothing {};

// No time-outs and no pings: the load generator's connections may idle.
uWS::App::WebSocketBehavior<Nothing> behaviour() {
    return {
        .compression = uWS::DISABLED,
        .maxPayloadLength = 16 * 1024 * 1024,
        .idleTimeout = 0,
        .maxBackpressure = 64 * 1024 * 1024,
        .closeOnBackpressureLimit = false,
        .resetIdleTimeoutOnSend = false,
        .sendPingsAutomatically = false,
    };
}

}  // namespace

int main(int argc, char **argv) {
    int port = argc > 1 ? std::atoi(argv[1]) : 0;
    uWS::App app;
    auto echo = behaviour();
    echo.message = [](auto *ws, std::string_view message, uWS::OpCode code) { ws->send(message, code, false); };
    auto fanout = behaviour();
    fanout.open = [](auto *ws) { ws->subscribe("all"); };
    fanout.message = [&app](auto *, std::string_view message, uWS::OpCode code) {
        app.publish("all", message, code, false);
    };
    app.ws<Nothing>("/fanout", std::move(fanout));
    app.ws<Nothing>("/*", std::move(echo));
    app.listen("127.0.0.1", port, [port](auto *listening) {
        if (!listening) {
            std::cerr << "cannot listen on port " << port << std::endl;
            std::exit(1);
        }
    });
    app.run();
}
