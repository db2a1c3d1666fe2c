//! The drivers on real sockets: each test runs on io_uring with one ring and with three, receiving
//! by multishot receive and by poll, and on epoll, and expects the same.

mod ring_support;

use ring_support::Kind;
use ring_support::lifecycle::*;
use ring_support::moving::*;
use ring_support::traffic::*;

/// A test for each kind of driver.
macro_rules! on_every_driver {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use super::Kind;

            #[test]
            fn uring() {
                super::$name(Kind::Uring);
            }

            #[test]
            fn three_rings() {
                super::$name(Kind::Rings);
            }

            #[test]
            fn polled() {
                super::$name(Kind::Polled);
            }

            #[test]
            fn three_rings_polled() {
                super::$name(Kind::PolledRings);
            }

            #[test]
            fn epoll() {
                super::$name(Kind::Epoll);
            }
        }
    )*};
}

on_every_driver!(
    echo_is_byte_exact,
    few_buffers_serve_many_streams,
    no_byte_is_left_in_the_socket,
    a_slow_reader_blocks_and_drains,
    connections_come_and_go_without_a_trace,
    a_reset_is_reported,
    data_goes_on_after_the_peers_fin,
    fin_follows_the_blocked_tail,
    fin_follows_the_turns_send,
    fin_after_a_send_waits_for_nothing,
    close_reaches_the_peer,
    close_while_blocked_drops_the_tail,
    bytes_sent_before_close_arrive,
    outgoing_connections_work,
    a_refused_connection_is_closed,
    an_attempt_can_be_given_up,
    many_outgoing_connections_at_once,
    no_wake_is_lost,
    a_full_table_recovers,
    stale_ids_do_nothing,
    nagle_is_off,
    peers_have_addresses,
    arrivals_keep_to_the_budget,
    rings_are_filled_one_after_another,
    the_established_are_served_between_arrivals,
    accepting_can_be_paused,
    closed_listeners_refuse,
    a_second_send_of_a_turn_closes,
    idle_time_is_told_from_work,
    tiny_queues_lose_nothing,
    a_dropped_driver_lets_go,
    sends_to_the_vanished_end_in_closed,
    nothing_leaks_under_fire,
    a_held_driver_takes_nothing,
    connections_go_on_with_a_successor,
    a_tail_and_both_ends_go_along,
    a_hold_that_is_given_up_loses_no_tail,
);
