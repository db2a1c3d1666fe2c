//! MQTT 3.1.1 (OASIS standard, 2014) at QoS 0: CONNECT and SUBSCRIBE at once, as section 3.1.4
//! allows; SUBACK says that the subscription stands.

use super::{Dialect, ProtocolError, Said, Subjects};

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const SUBACK: u8 = 9;
const PINGRESP: u8 = 13;
/// No keep-alive: the server shall not close a client for its silence.
const KEEP_ALIVE_OFF: [u8; 2] = [0, 0];

/// Publishes to a topic and is subscribed to it.
pub struct Mqtt {
    pub subjects: Subjects,
}

impl Dialect for Mqtt {
    fn hello(&self, client: u32) -> Vec<u8> {
        let mut connect = Vec::new();
        put_string(&mut connect, b"MQTT");
        // Version 4 is 3.1.1; flag 2 is a clean session.
        connect.extend_from_slice(&[4, 2]);
        connect.extend_from_slice(&KEEP_ALIVE_OFF);
        put_string(&mut connect, format!("bench-{client}").as_bytes());
        let mut subscribe = vec![0, 1];
        put_string(&mut subscribe, self.subjects.name(client).as_bytes());
        subscribe.push(0);
        let mut out = packet(0x10, &connect);
        out.extend(packet(0x82, &subscribe));
        out
    }

    fn message(&self, client: u32, payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        put_string(&mut body, self.subjects.name(client).as_bytes());
        body.extend_from_slice(payload);
        packet(PUBLISH << 4, &body)
    }

    fn take<'a>(&self, data: &'a [u8]) -> Result<Option<(usize, Said<'a>)>, ProtocolError> {
        let Some((begin, length)) = remaining_length(data)? else {
            return Ok(None);
        };
        let Some(body) = data.get(begin..begin + length) else {
            return Ok(None);
        };
        let said = match data[0] >> 4 {
            CONNACK => match body {
                [_, 0] => Said::Other,
                _ => return Err(ProtocolError(format!("MQTT: CONNACK {body:?}"))),
            },
            SUBACK => match body {
                [0, 1, 0] => Said::Ready,
                _ => return Err(ProtocolError(format!("MQTT: SUBACK {body:?}"))),
            },
            PUBLISH => Said::Message(payload_of(data[0], body)?),
            PINGRESP => Said::Other,
            kind => return Err(ProtocolError(format!("MQTT: a packet of type {kind}"))),
        };
        Ok(Some((begin + length, said)))
    }
}

/// Past the topic, and past the identifier that only QoS above 0 has.
fn payload_of(first: u8, body: &[u8]) -> Result<&[u8], ProtocolError> {
    if first & 0b0110 != 0 {
        return Err(ProtocolError("MQTT: a delivery above QoS 0".into()));
    }
    let topic = body
        .first_chunk()
        .map(|b| usize::from(u16::from_be_bytes(*b)));
    topic
        .and_then(|length| body.get(2 + length..))
        .ok_or_else(|| ProtocolError("MQTT: PUBLISH without a topic".into()))
}

/// Where the body begins and how long it is (section 2.2.3).
fn remaining_length(data: &[u8]) -> Result<Option<(usize, usize)>, ProtocolError> {
    let mut length = 0;
    for at in 0..4 {
        let Some(byte) = data.get(1 + at) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((2 + at, length)));
        }
    }
    Err(ProtocolError("MQTT: a length of five bytes".into()))
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let byte = (rest & 0x7f) as u8;
        rest >>= 7;
        out.push(byte | if rest > 0 { 0x80 } else { 0 });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MQTT: Mqtt = Mqtt {
        subjects: Subjects::Own,
    };

    #[test]
    fn a_message_reads_back_as_it_was_published() {
        for length in [0, 1, 100, 128, 20_000] {
            let payload = vec![b'x'; length];
            let bytes = MQTT.message(9, &payload);
            let taken = MQTT.take(&bytes).unwrap();
            assert_eq!(taken, Some((bytes.len(), Said::Message(&payload))));
            assert_eq!(MQTT.take(&bytes[..bytes.len() - 1]).unwrap(), None);
        }
    }

    #[test]
    fn the_greeting_is_what_the_standard_says() {
        let hello = MQTT.hello(1);
        let connect = b"\x10\x13\0\x04MQTT\x04\x02\0\0\0\x07bench-1";
        let subscribe = b"\x82\x0c\0\x01\0\x07bench-1\0";
        assert_eq!(hello[..connect.len()], connect[..]);
        assert_eq!(hello[connect.len()..], subscribe[..]);
    }

    #[test]
    fn answers_are_read_and_refusals_are_errors() {
        assert_eq!(MQTT.take(b"\x20\x02\0\0").unwrap(), Some((4, Said::Other)));
        let taken = MQTT.take(b"\x90\x03\0\x01\0").unwrap();
        assert_eq!(taken, Some((5, Said::Ready)));
        assert!(MQTT.take(b"\x20\x02\0\x05").is_err());
        assert!(MQTT.take(b"\x90\x03\0\x01\x80").is_err());
        assert!(MQTT.take(b"\x32\x03\0\x01a").is_err());
        assert!(MQTT.take(b"\x30\xff\xff\xff\xff\x01").is_err());
    }
}
