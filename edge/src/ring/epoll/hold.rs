//! Sockets that change hands: holding still, giving copies away, taking others in. Edges that come
//! while something is held are forgotten; the release sets every watch anew, which reports them
//! again.

use std::io;
use std::os::fd::{IntoRawFd as _, RawFd};

use super::{EpollDriver, READ_EVENTS, WRITE_EVENTS, close_descriptor};
use crate::ring::slots::flag;
use crate::ring::{Carried, ConnId, Fin, Hold};

impl EpollDriver {
    pub(super) fn hold_back(&mut self, hold: Hold) {
        let before = std::mem::replace(&mut self.held, hold);
        if before == hold {
            return;
        }
        self.update_accepting();
        if hold > before {
            for id in std::mem::take(&mut self.ready) {
                if let Some(slot) = self.slots.find(id) {
                    self.slots.get_mut(slot).clear(flag::READY);
                }
            }
            return;
        }
        let slots: Vec<u32> = self.slots.iter_live().collect();
        for slot in slots {
            let conn = self.slots.get(slot);
            if conn.has(flag::CLOSING | flag::CONNECTING) {
                continue;
            }
            let events = if conn.has(flag::AWAITING_ROOM) {
                WRITE_EVENTS | READ_EVENTS
            } else {
                READ_EVENTS
            };
            if let Err(error) = self.watch(libc::EPOLL_CTL_MOD, slot, events) {
                self.close_later(slot, Some(error.kind()));
            }
        }
    }

    pub(super) fn copy_of(&self, slot: u32) -> io::Result<Option<Carried>> {
        let conn = self.slots.get(slot);
        if conn.has(flag::CLOSING | flag::CONNECTING) {
            return Ok(None);
        }
        let tail = self.slots.rare(slot).map(|rare| rare.tail.clone());
        Ok(Some(Carried {
            socket: self.socket(slot).try_clone_to_owned()?,
            tail: tail.unwrap_or_default(),
            eof: conn.has(flag::EOF),
            fin: conn.fin(),
        }))
    }

    pub(super) fn take_in(&mut self, carried: Carried) -> io::Result<ConnId> {
        let (flags, fin) = (carried.flags(), carried.fin);
        let fd: RawFd = carried.socket.into_raw_fd();
        let Some(slot) = self.slots.allocate(fd as u32, flags) else {
            close_descriptor(fd);
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        };
        let id = self.slots.id(slot);
        let events = if carried.tail.is_empty() {
            READ_EVENTS
        } else {
            self.slots.set_tail(slot, carried.tail);
            self.slots.get_mut(slot).set(flag::AWAITING_ROOM);
            WRITE_EVENTS | READ_EVENTS
        };
        if let Err(error) = self.watch(libc::EPOLL_CTL_ADD, slot, events) {
            self.slots.release(slot);
            close_descriptor(fd);
            return Err(error);
        }
        if fin == Fin::Due {
            self.shutdowns.push(id);
        }
        Ok(id)
    }
}
